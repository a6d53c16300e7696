import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from executor.capture import capture
from executor.sources import build_model
from executor.zoo import DECODERS, TAKES_TOKENS, ZOO
from executor.zoo.generation import Step
from executor.zoo.llama import Llama, Shape
from executor.zoo.mixtral import Experts

PUBLISHED_PARAMS = {
    "cifar10-cnn": 122_570,
    "resnet50": 25_557_032,
    "mobilenet-v3": 5_483_032,
    "unet": 859_520_964,
    "vit-b-16": 86_567_656,
    "bert-base": 109_482_240,
    "gpt2": 124_439_808,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mixtral-8x7b": 46_702_792_704,
    "whisper-small": 241_734_912,
    "dlrm": 540_677_217,
}
SMALL = Shape(vocabulary=97, width=64, inner=48, layers=2, heads=4, kv_heads=2, rotary_base=1e4)


def test_naming_the_models_does_not_import_torch():
    code = "import sys, executor.zoo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ZOO)
def test_models_have_their_published_parameters(name):
    with torch.device("meta"):
        module, _ = ZOO[name](1)
    assert sum(p.numel() for p in module.parameters()) == PUBLISHED_PARAMS[name]


@pytest.mark.parametrize("name", ["mobilenet-v3", "bert-base", "dlrm"])
def test_products_cost_what_torch_counts(name):
    graph = capture(f"zoo:{name}", 2)
    model = build_model(f"zoo:{name}", 2, "float32", "meta")
    with FlopCounterMode(display=False) as counter:
        model.module(*model.inputs)
    by_kind = graph.flops_by_kind()
    ours = sum(by_kind.get(kind, 0) for kind in ("matmul", "conv", "attention"))
    assert ours == counter.get_total_flops()
    assert graph.num_params == PUBLISHED_PARAMS[name]
    assert graph.uncosted_ops == []


def test_mixtral_costs_the_closed_formula_and_reads_the_chosen_experts():
    graph = capture("zoo:mixtral-8x7b", 1, tokens=2)
    tokens, width, inner, layers = 2, 4096, 14336, 32
    attention = 2 * width * width + 2 * width * 1024
    experts = 2 * 3 * width * inner + 8 * width
    scores = 2 * tokens * width
    head = width * 32000
    ours = sum(graph.flops_by_kind()[kind] for kind in ("matmul", "attention"))
    assert ours == 2 * tokens * (layers * (attention + experts + scores) + head)
    grouped = [op for op in graph.ops if "grouped_mm" in op.target]
    assert {op.weight_share for op in grouped} == {0.5}  # two tokens by two experts, of eight
    assert graph.uncosted_ops == []


@pytest.mark.parametrize("name", sorted(TAKES_TOKENS))
def test_sequence_models_take_a_number_of_tokens(name):
    with torch.device("meta"):
        _, inputs = ZOO[name](2, 16)
    assert inputs[-1].shape == (2, 16)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_give_logits_and_new_keys_and_values(name):
    with torch.device("meta"):
        module, inputs = DECODERS[name](2, 3, 5)
        logits, *cache = module(*inputs)
    assert logits.shape[:2] == (2, 1)
    assert len(cache) == len(inputs) - 1
    assert {(t.shape[2], u.shape[2]) for t, u in zip(inputs[1:], cache, strict=True)} == {(5, 3)}


@pytest.mark.parametrize("mlp", [None, Experts])
def test_steps_with_a_cache_equal_one_run_over_all_tokens(mlp):
    torch.manual_seed(0)
    model = (Llama(SMALL, mlp) if mlp else Llama(SMALL)).eval()
    tokens = torch.randint(SMALL.vocabulary, (2, 9))
    with torch.no_grad():
        whole = model(tokens)
        _, *cache = Step(model)(tokens[:, :5])
        for start, end in ((5, 8), (8, 9)):
            logits, *made = Step(model)(tokens[:, start:end], *cache)
            cache = [torch.cat(pair, 2) for pair in zip(cache, made, strict=True)]
    torch.testing.assert_close(logits[:, 0], whole[:, -1])


def copied(source, names):
    return {names(key): value for key, value in source.state_dict().items()}


def test_llama_computes_what_transformers_computes():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, rope_theta=1e4, rms_norm_eps=1e-5,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs, ours = transformers.LlamaForCausalLM(config).eval(), Llama(SMALL).eval()
    ours.load_state_dict(copied(theirs, lambda key: key.removeprefix("model.")))
    tokens = torch.randint(97, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits)


def test_mixtral_computes_what_transformers_computes():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=97, hidden_size=64, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, rope_theta=1e4, rms_norm_eps=1e-5,
        num_local_experts=8, num_experts_per_tok=2, sliding_window=None,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs, ours = transformers.MixtralForCausalLM(config).eval(), Llama(SMALL, Experts).eval()
    state = copied(theirs, lambda key: key.removeprefix("model.").replace(".experts.", "."))
    is_expert = lambda key: key.endswith(("gate_up_proj", "down_proj"))  # noqa: E731
    ours.load_state_dict({k: v.mT if is_expert(k) else v for k, v in state.items()})
    tokens = torch.randint(97, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits)
