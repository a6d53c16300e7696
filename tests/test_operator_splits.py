"""Splitting operators: the graph's and the program's way give one answer, and so do the outputs."""

import pytest
import torch

from executor.capture import to_graph
from executor.export import export
from executor.operator_splits import split_program
from executor.program import Program
from executor.sources import Model
from executor.split import cut
from scheduler.ir.graph import Graph
from scheduler.tensor_parallel.operator_splits import split_graph
from scheduler.tensor_parallel.split_rules import Split, cut_of


class Block(torch.nn.Module):
    """Convolution, batch norm, pooling, attention by heads, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 10, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(10)
        self.query, self.key, self.value = (torch.nn.Linear(10, 12) for _ in range(3))
        self.up, self.down = torch.nn.Linear(12, 31), torch.nn.Linear(31, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.conv(image))), 2)
        x = x.flatten(2).transpose(1, 2)
        q, k, v = (
            f(x).unflatten(2, (4, 3)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        y = y.transpose(1, 2).flatten(2)
        return self.down(torch.nn.functional.gelu(self.up(y))) + 1


@pytest.fixture(scope="module")
def program() -> tuple[Program, Graph, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    module, image = Block().eval(), torch.randn(5, 3, 8, 8)
    captured = export(Model("block", module, (image,)))
    return captured, to_graph(captured, "block", 5), image, module(image).detach()


def splits_along(graph: Graph, inner: bool, parts: int) -> dict[str, Split]:
    """Every operator that can be, cut along the batch or along columns, heads and channels."""
    chosen = {}
    for op in graph.ops:
        rank = len(op.outputs[0].shape)
        last = {"matmul": rank - 1, "attention": rank - 3}.get(
            op.kind, 1 if rank == 4 else rank - 1
        )
        split = Split(last if inner else 0, parts)
        if cut_of(graph, op, split):
            chosen[op.name] = split
    return chosen


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("parts", [2, 3])
def test_split_program_gives_the_whole_programs_output(program, inner, parts):
    captured, graph, image, expected = program
    splits = splits_along(graph, inner, parts)
    assert {graph.by_name[name].kind for name in splits} >= {"conv", "norm", "matmul", "attention"}
    split = split_program(captured, splits)
    names = [op.name for op in to_graph(split, "block", 5).ops]
    (stage,) = cut(split, [names])
    (output,) = stage.build("cpu")(image)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("parts", [2, 3])
def test_the_graph_is_split_as_the_program_is(program, inner, parts):
    captured, graph, _, _ = program
    splits = splits_along(graph, inner, parts)
    by_graph = split_graph(graph, splits)
    by_program = to_graph(split_program(captured, splits), "block", 5)
    assert [op.name for op in by_graph.ops] == [op.name for op in by_program.ops]
    for ours, theirs in zip(by_graph.ops, by_program.ops, strict=True):
        assert (ours.kind, ours.inputs, dict(ours.dims)) == (
            theirs.kind, theirs.inputs, dict(theirs.dims),
        )  # fmt: skip
        assert ours.flops == pytest.approx(theirs.flops)
        assert ours.bytes_moved == pytest.approx(theirs.bytes_moved)
        assert sum(ours.weights.values()) == sum(theirs.weights.values())
    assert by_graph.totals()["flops"] == pytest.approx(graph.totals()["flops"])


def test_neighbours_split_alike_hand_on_their_parts(program):
    _, graph, _, _ = program
    splits = {"conv2d": Split(1, 2), "batch_norm": Split(1, 2), "relu": Split(1, 2)}
    names = [op.name for op in split_graph(graph, splits).ops][:7]
    assert names == [
        "conv2d_part0", "conv2d_part1", "batch_norm_part0", "batch_norm_part1",
        "relu_part0", "relu_part1", "relu",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split", "reason"),
    [
        ("nothing", Split(0, 2), "no such operator"),
        ("conv2d", Split(2, 2), "cannot be cut along dimension 2"),
        ("conv2d", Split(1, 11), "into 11 parts"),
        ("transpose", Split(1, 2), "cannot be cut"),
    ],
)
def test_a_split_that_cannot_be_is_refused(program, name, split, reason):
    _, graph, _, _ = program
    with pytest.raises(ValueError, match=reason):
        split_graph(graph, {name: split})
