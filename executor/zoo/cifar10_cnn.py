"""The convolutional network of the CIFAR-10 tutorials, 32 x 32 pixels."""

import torch
from torch import Tensor, nn


def cifar10_cnn(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build conv 32, pool, conv 64, pool, conv 64, dense 64, dense 10; input (batch, 3, 32, 32).

    Source: TensorFlow tutorial "Convolutional Neural Network (CNN)"; 122,570 parameters.
    """
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return model.eval(), (torch.randn(batch, 3, 32, 32),)
