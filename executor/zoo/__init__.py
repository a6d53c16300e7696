"""Models that people recognise, in plain torch, with random weights.

A model is a function `(batch) -> (module, example inputs)`; the module is in evaluation mode.
"""

from collections.abc import Callable

from torch import Tensor, nn

from executor.zoo.cifar10_cnn import cifar10_cnn
from executor.zoo.gpt2 import gpt2
from executor.zoo.resnet50 import resnet50

Factory = Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]

ZOO: dict[str, Factory] = {"cifar10-cnn": cifar10_cnn, "resnet50": resnet50, "gpt2": gpt2}
