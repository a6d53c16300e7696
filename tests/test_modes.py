"""Training and generation: graphs, FLOPs and memory by closed formulas."""

from dataclasses import replace

import pytest
import torch
from conftest import make_cluster
from torch import nn

import executor.zoo.ops  # noqa: F401
from executor.capture import capture, to_graph
from executor.export import export
from executor.generation import capture_generation
from executor.sources import Model, build_model
from executor.training import Optimizer, capture_training
from executor.zoo import llama as zoo_llama
from executor.zoo.llama import Llama, Shape
from executor.zoo.mixtral import Experts
from scheduler.cost_model.costs import cost_table
from scheduler.evaluation.memory import memory_needs
from scheduler.plan import cut_stages
from scheduler.problem import Problem
from ui import cli, exits

SHAPE = Shape(8000, width=512, inner=2048, layers=2, heads=8, kv_heads=2, rotary_base=1e4)
TOKENS = 64


def on_meta(make, *inputs):
    with torch.device("meta"):
        return Model("m", make().eval(), tuple(x() for x in inputs))


def llama(mlp=None):
    return on_meta(
        lambda: Llama(SHAPE, mlp) if mlp else Llama(SHAPE),
        lambda: torch.zeros(1, TOKENS, dtype=torch.int64),
    )


def flops(graph, phase, *kinds):
    return sum(op.flops for op in graph.ops if op.phase == phase and op.kind in kinds)


def trained(model, optimizer=None):
    return capture_training(model, 1, optimizer or Optimizer())


@pytest.fixture(scope="module")
def llama_step():
    return trained(llama())


@pytest.fixture(scope="module")
def gpt2():
    return capture_generation("zoo:gpt2", 2, "float32", prompt_tokens=24, new_tokens=8)


def test_a_step_has_three_phases_in_order(llama_step):
    phases = [op.phase for op in llama_step.ops]
    assert llama_step.mode == "training"
    assert list(dict.fromkeys(phases)) == ["forward", "backward", "optimizer"]
    assert phases == sorted(phases, key=["forward", "backward", "optimizer"].index)
    assert llama_step.uncosted_ops == []


def test_backward_doubles_products_and_computes_attention_two_and_a_half_times(llama_step):
    """Each product has two gradients; flash attention computes Q K^T again."""
    forward = to_graph(export(llama()), "m", 1).flops_by_kind()
    assert flops(llama_step, "forward", "matmul") == forward["matmul"]
    assert flops(llama_step, "backward", "matmul") == 2 * forward["matmul"]
    assert flops(llama_step, "backward", "attention") == 2.5 * forward["attention"]
    step = sum(op.flops for op in llama_step.ops if op.phase != "optimizer")
    assert 2.95 < step / sum(forward.values()) < 3.05


def test_experts_train_and_their_products_double_too():
    step = trained(llama(Experts))
    forward = to_graph(export(llama(Experts)), "m", 1).flops_by_kind()
    assert flops(step, "forward", "matmul") == forward["matmul"]
    assert flops(step, "backward", "matmul") == 2 * forward["matmul"]
    assert step.uncosted_ops == []
    updated = {name for op in step.ops if op.phase == "optimizer" for name in op.weights}
    assert "layers.0.mlp.gate_up_proj" in {n.split("module.")[-1] for n in updated}


def test_the_gradients_of_grouped_products_are_those_of_single_ones():
    torch.manual_seed(0)
    rows = torch.randn(24, 16, requires_grad=True)
    matrices = torch.randn(3, 16, 8, requires_grad=True)
    ends = torch.tensor([8, 8, 24], dtype=torch.int32)
    made = torch.ops.apportion.grouped_mm(rows, matrices, ends)
    parts = [rows[:8] @ matrices[0], rows[8:8] @ matrices[1], rows[8:] @ matrices[2]]
    weight = torch.randn_like(made)
    ours = torch.autograd.grad((made * weight).sum(), (rows, matrices))
    expected = torch.autograd.grad((torch.cat(parts) * weight).sum(), (rows, matrices))
    torch.testing.assert_close(ours, expected)


def test_images_have_no_gradient_so_the_first_convolution_has_one_only():
    step = trained(build_model("zoo:cifar10-cnn", 1, "float32", "meta"))
    forward = capture("zoo:cifar10-cnn", 1).flops_by_kind()
    first = 2 * 30 * 30 * 32 * 3 * 9
    assert flops(step, "backward", "conv") == 2 * forward["conv"] - first
    assert flops(step, "backward", "matmul") == 2 * forward["matmul"]


class Tower(nn.Module):
    """Layers h <- sigmoid(W h): each keeps its output alone, for itself and for the next."""

    def __init__(self, depth, width=32):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).sigmoid()
        return x


def tower(depth, optimizer=None):
    return trained(on_meta(lambda: Tower(depth), lambda: torch.zeros(5, 32)), optimizer)


def need(graph):
    """Memory of a graph that runs whole on one device."""
    cluster = make_cluster("a")
    placement = dict.fromkeys(graph.by_name, "a")
    problem = Problem(graph, cluster, cost_table(graph, cluster))
    return memory_needs(problem, placement, cut_stages(graph, placement), 1)["a"]


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [(Optimizer("adam"), 2), (Optimizer("sgd"), 0), (Optimizer("sgd", momentum=0.9), 1)],
)
def test_gradients_and_states_are_whole_multiples_of_the_parameters(optimizer, states):
    made = need(tower(3, optimizer))
    params = 3 * 32 * 32 * 4
    assert made.param_bytes == made.gradient_bytes == params
    assert made.state_bytes == states * params


def test_activations_live_from_forward_to_their_backward():
    """A layer more keeps one (5, 32) output more; what only forward reads is freed."""
    kept = 5 * 32 * 4
    needs = [need(tower(depth)).activation_bytes for depth in (4, 5, 6)]
    assert needs[1] - needs[0] == needs[2] - needs[1] == kept
    graph = tower(4)
    phase = {op.name: op.phase for op in graph.ops}
    made = {t.name for op in graph.ops if op.phase == "forward" for t in op.outputs}
    read = {
        graph.storage[tensor]
        for tensor, names in graph.consumers.items()
        if "backward" in {phase[name] for name in names}
    }
    sigmoids = {t.name for op in graph.ops if "sigmoid.d" in op.target for t in op.outputs}
    assert len(sigmoids) == 4
    assert sigmoids <= read & made


def test_inference_keeps_two_activations_however_deep():
    def inference(depth):
        model = on_meta(lambda: Tower(depth), lambda: torch.zeros(5, 32))
        return need(to_graph(export(model), "m", 1)).activation_bytes

    assert inference(4) == inference(8) == 2 * 5 * 32 * 4


def test_what_cannot_be_trained_says_so():
    model = on_meta(nn.ReLU, lambda: torch.zeros(4))
    with pytest.raises(ValueError, match="it has no parameters to train"):
        trained(model)
    with pytest.raises(ValueError, match="must be adam or sgd, got 'adan'"):
        Optimizer("adan")
    with pytest.raises(ValueError, match="momentum must be from 0 and below 1, got 1"):
        Optimizer("sgd", 1)


def test_the_cache_has_a_key_and_a_value_for_each_layer_head_and_token(gpt2):
    layers, heads, depth, batch = 12, 12, 64, 2
    assert gpt2.kv_bytes == 2 * layers * heads * depth * (24 + 8) * batch * 4


def test_grouped_heads_keep_a_smaller_cache(monkeypatch):
    """Llama-3-8B with 2 of its 32 like layers."""
    monkeypatch.setattr(zoo_llama, "LLAMA_3_8B", replace(zoo_llama.LLAMA_3_8B, layers=2))
    made = capture_generation("zoo:llama-3-8b", 1, "bfloat16", prompt_tokens=6, new_tokens=4)
    layers, kv_heads, depth = 2, 8, 128
    assert made.kv_bytes == 2 * layers * kv_heads * depth * 10 * 2


def test_prefill_and_decode_cost_the_closed_formulas(gpt2):
    """2 per weight and token, the head for the last token only; 4 per query, key and width."""
    layers, width, vocabulary, batch = 12, 768, 50257, 2
    weights, head = 12 * layers * width**2, vocabulary * width
    for graph, queries, keys in ((gpt2.prefill, 24, 24), (gpt2.decode, 1, 24 + 4 + 1)):
        by_kind = graph.flops_by_kind()
        assert by_kind["matmul"] == 2 * batch * (queries * weights + head)
        assert by_kind["attention"] == layers * 4 * batch * queries * keys * width


def test_decode_reads_one_token_and_keeps_the_cache_in_place(gpt2):
    assert [tensor.shape for tensor in gpt2.decode.inputs] == [(2, 1)]
    assert (gpt2.prefill.mode, gpt2.decode.mode) == ("prefill", "decode")
    assert all(op.state_bytes == 0 for op in gpt2.prefill.ops)
    assert need(gpt2.decode).state_bytes == gpt2.kv_bytes
    assert need(gpt2.decode).activation_bytes < gpt2.kv_bytes


def test_generation_takes_a_decoder_and_at_least_one_token():
    with pytest.raises(ValueError, match=r"needs a decoder: zoo:gpt2, .* got 'zoo:resnet50"):
        capture_generation("zoo:resnet50", 1, "float32")
    with pytest.raises(ValueError, match="prompt_tokens must be at least 1, got 0"):
        capture_generation("zoo:gpt2", 1, "float32", prompt_tokens=0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("{source: zoo:gpt2, mode: generation}", "mode generation is predicted only"),
        ("{source: 'graph:some.json'}", "graph:some.json holds no weights to run"),
        (
            "{source: zoo:cifar10-cnn, mode: training, batch: 8}\nconstraints: {replicate: true}",
            "training with replicas is predicted only",
        ),
    ],
)
def test_what_is_only_predicted_is_not_executed(tmp_path, capsys, model, reason):
    path = tmp_path / "scenario.yaml"
    path.write_text(f"model: {model}\n")
    assert cli.main(["execute", str(path)]) == exits.BAD_INPUT
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"apportion: error: {path}: execute runs on this machine; {reason}")
    assert "\n" not in error
