"""Capture of awkward modules: each falls to the way that can follow it, and the way is named."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from executor.capture import to_graph
from executor.export import WAYS, export
from executor.program import tensors_in
from executor.sources import Model, moved_weights
from executor.split import cut

NONSTRICT, STRICT, TRACED, DYNAMO = WAYS


class ShapeBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        for _ in range(x.shape[0]):
            x = self.layer(x)
        return x if x.shape[1] > 3 else -x


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        y = x * 2
        y[:, 0] = 1
        y.add_(1)
        self.seen.add_(y.sum(0))
        return y


class Nested(nn.Module):
    def forward(self, pair, *, extra, scale=2.0):
        return {"sum": [pair["a"] + pair["b"][0], extra * scale]}


@dataclass
class Result:
    logits: torch.Tensor
    hidden: list


class DataClassOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        hidden = self.layer(x)
        return Result(F.relu(hidden), [hidden])


class NumpyInside(nn.Module):
    def forward(self, x):
        return torch.from_numpy(np.sqrt(np.abs(x.numpy()))) + 1


class KeepsOnItself(nn.Module):
    """Leaves a tensor on an attribute, and returns an object of a plain class."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.last = None

    def forward(self, x):
        self.last = self.layer(x)
        return Holder(F.relu(self.last))


class Holder:
    def __init__(self, value):
        self.value = value


class NumpyAndBreak(nn.Module):
    """NumPy, which only bytecode reading follows, and a break, which only joining survives."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        y = torch.from_numpy(np.maximum(self.layer(x).detach().numpy(), 0))
        torch._dynamo.graph_break()
        return self.layer(y) + x


class PerSample(nn.Module):
    """A Jacobian per sample: torch.export loses itself in the transforms."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return torch.func.vmap(torch.func.jacrev(self.layer))(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.last = None

    def forward(self, x):
        return Holder(self.head(self.embed(x)))


x4 = torch.randn(2, 4)
CASES = {
    "shapes": (ShapeBranches, (x4,), {}, NONSTRICT),
    "in place": (InPlace, (x4,), {}, NONSTRICT),
    "nested": (Nested, ({"a": x4, "b": [x4 + 1]},), {"extra": x4 - 1}, NONSTRICT),
    "data class": (DataClassOut, (x4,), {}, NONSTRICT),
    "numpy": (NumpyInside, (x4,), {}, STRICT),
    "holder": (KeepsOnItself, (x4,), {}, NONSTRICT),
    "numpy and break": (NumpyAndBreak, (x4,), {}, DYNAMO),
    "per sample": (PerSample, (x4,), {}, TRACED),
    "tied": (Tied, (torch.tensor([[1, 2]]),), {}, NONSTRICT),
}


def made(case, device):
    make, inputs, kwargs, way = CASES[case]
    torch.manual_seed(0)
    model = Model(case, make().eval(), inputs, kwargs)
    if device == "meta":
        moved_weights(model.module, lambda t: t.to("meta"))
        model = model.with_tensors(lambda t: t.to("meta"))
    return model, way


@pytest.mark.parametrize("case", CASES)
def test_the_first_way_that_can_is_taken_and_the_real_module_gets_the_same_graph(case):
    model, way = made(case, "meta")
    program = export(model)
    assert program.captured_by == way
    tried = list(WAYS).index(way)
    assert [n for n in program.notes if " failed: " in n] == list(program.notes[:tried])
    real, _ = made(case, "cpu")
    same = export(real, program.captured_by)
    assert list(to_graph(program, "m", 2).by_name) == list(to_graph(same, "m", 2).by_name)
    _assert_runs_like_the_module(real, same)


def _assert_runs_like_the_module(real, program):
    (stage,) = cut(program, [list(to_graph(program, "m", 2).by_name)])
    given = dict(zip(program.inputs, real.tensors, strict=True))
    results = stage.build("cpu")(*(given[name] for name in stage.inputs))
    outputs = dict(zip(stage.outputs, results, strict=True))
    expected = tensors_in(real.module(*real.inputs, **real.kwargs))
    for name, value in zip(program.outputs, expected, strict=False):
        torch.testing.assert_close(outputs[name], value)
