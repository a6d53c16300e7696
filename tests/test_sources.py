"""Model sources: what each gives, and one clear sentence where it gives nothing."""

import json
import re
import sys

import pytest

from executor.capture import capture
from executor.generation import capture_generation
from executor.sources import build_model
from executor.training import Optimizer, capture_training
from ui.model_spec import ModelSpec
from ui.source import captured

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
TEXT = {**SIZES, "vocab_size": 100, "max_position_embeddings": 24}
CONFIGS = {
    "bert": {"model_type": "bert", "architectures": ["BertForMaskedLM"], **TEXT},
    "labels": {"model_type": "bert", "architectures": ["BertForSequenceClassification"], **TEXT},
    "answers": {"model_type": "bert", "architectures": ["BertForQuestionAnswering"], **TEXT},
    "bare": {"model_type": "bert", **TEXT},
    "gpt2": {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 100,
        "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 2,
    },
    "llama": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 1,
        **TEXT,
    },
    "experts": {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_key_value_heads": 1,
        "num_local_experts": 4, **TEXT,
    },
    "layerdrop": {
        "model_type": "bart", "architectures": ["BartForConditionalGeneration"], "d_model": 32,
        "vocab_size": 100, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 24,
    },
    "vit": {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 32,
        "patch_size": 8, **SIZES,
    },
}  # fmt: skip


@pytest.fixture
def config_file(tmp_path):
    pytest.importorskip("transformers")

    def write(content, name="tiny.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return f"hf:{path}"

    return write


@pytest.fixture
def factory_file(tmp_path):
    def write(body, name="mine.py"):
        path = tmp_path / name
        path.write_text("import torch\nfrom torch import nn\n" + body)
        return f"python:{path}:make"

    return write


def layer_weights(name):
    """Weights of the matrices that every token passes, by the configuration's sizes."""
    width, inner, layers, vocabulary = 32, 64, 2, 100
    return {
        "bert": layers * (4 * width**2 + 2 * width * inner) + width**2 + width * vocabulary,
        "gpt2": layers * 12 * width**2 + width * vocabulary,
        "llama": layers * (3 * width**2 + 3 * width * inner) + width * vocabulary,
    }[name]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_text_configuration_costs_its_closed_formula(config_file, name):
    """2 per weight and token: two samples of as many tokens as the model has positions."""
    graph = capture(config_file(CONFIGS[name]), 2)
    assert graph.flops_by_kind()["matmul"] == 2 * 2 * 24 * layer_weights(name)
    assert graph.flops_by_kind()["attention"] == 2 * 4 * 2 * 24 * 24 * 32
    assert [tensor.shape for tensor in graph.inputs] == [(2, 24)]
    assert graph.uncosted_ops == []


def test_an_image_configuration_reads_pixels(config_file):
    graph = capture(config_file(CONFIGS["vit"]), 3)
    assert [tensor.shape for tensor in graph.inputs] == [(3, 3, 32, 32)]
    assert graph.flops_by_kind()["conv"] == 2 * 3 * 16 * (3 * 64) * 32


def test_a_folder_is_named_after_itself_and_takes_tokens(config_file, tmp_path):
    config_file(CONFIGS["llama"], "config.json")
    graph = capture(f"hf:{tmp_path}", 1, tokens=5)
    assert graph.inputs[0].shape == (1, 5)
    with pytest.raises(ValueError, match=re.escape("at most 24 (the model's positions), got 25")):
        capture(f"hf:{tmp_path}", 1, tokens=25)


def test_without_architectures_the_bare_model_is_built(config_file):
    graph = capture(config_file(CONFIGS["bare"]), 1)
    assert graph.name == "tiny-BertModel"
    assert graph.tensors[graph.outputs[0]].shape == (1, 24, 32)


@pytest.mark.parametrize("name", ["labels", "answers", "gpt2", "experts", "vit", "layerdrop"])
def test_a_model_with_a_loss_of_its_own_descends_it(config_file, name):
    step = trained(config_file(CONFIGS[name]))
    assert step.notes[-1] == "loss: the model's own"
    assert step.uncosted_ops == []
    assert {op.phase for op in step.ops} == {"forward", "backward", "optimizer"}


def test_a_model_without_a_loss_descends_a_default_one_and_says_which(config_file, factory_file):
    step = trained(config_file(CONFIGS["bare"]))
    assert step.notes[-1] == "loss: cross-entropy of the first output"
    body = "def make(batch): return nn.Conv2d(1, 2, 3), (torch.zeros(batch, 1, 4, 4),)\n"
    assert trained(factory_file(body)).notes == ("loss: mean of squares of the first output",)


def trained(source):
    return capture_training(build_model(source, 2, "float32", "meta"), 2, Optimizer())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ([1], "a configuration needs the key 'model_type'"),
        ({"hidden_size": 4}, "a configuration needs the key 'model_type'"),
        ({"model_type": "brt"}, "has no model_type 'brt'; a newer one may: pip install -U"),
        ({**CONFIGS["bert"], "architectures": ["BertForBread"]}, "has no class BertForBread"),
        ({**CONFIGS["bert"], "num_attention_heads": 5}, "hidden size (32) is not a multiple"),
    ],
)
def test_a_bad_configuration_is_one_sentence(config_file, content, message):
    source = config_file(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        capture(source, 1)
    assert str(error.value).startswith(source)


def test_a_missing_package_names_the_extra_to_install(config_file, monkeypatch):
    source = config_file(CONFIGS["bert"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'apportion[hf]'")):
        capture(source, 1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:nowhere.json", "hf:nowhere.json: no such file"),
        ("zoo:resnet5", "unknown model 'zoo:resnet5'; did you mean 'resnet50'?"),
        ("resnet50", "model source 'resnet50' is not zoo:NAME, python:MODULE:FACTORY, hf:FILE"),
        ("keras:model", "model source 'keras:model' is not zoo:NAME"),
        ("python:mine", "model source 'python:mine' is not zoo:NAME"),
        ("python:nowhere.py:make", "module 'nowhere.py' cannot be imported: nowhere.py: no such"),
        ("python:json:dums", "module 'json' has no 'dums'; did you mean 'dumps'?"),
        ("python:no_such_module:make", "module 'no_such_module' cannot be imported: No module"),
        ("graph:nowhere.json", "nowhere.json: no such file"),
    ],
)
def test_what_is_no_source_is_one_sentence(source, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        captured(ModelSpec(source))
    assert "\n" not in str(error.value)


def test_a_graph_is_planned_not_built():
    with pytest.raises(ValueError, match="a graph without a torch module"):
        build_model("graph:some.json", 1, "float32", "meta")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make(batch): return 1 / 0\n", "mine.py:3: def make(batch): return 1 / 0: division"),
        ("def make(batch): return nn.ReLU()\n", "the factory must return (torch.nn.Module, tuple"),
        ("make = 3\n", "has no 'make'"),
        ("raise OSError('gone')\n", "mine.py:3: raise OSError('gone'): gone"),
    ],
)
def test_a_factory_that_fails_names_its_line(factory_file, body, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        capture(factory_file(body), 1)
    assert str(error.value).startswith("python:")


BRANCH = """
class Choosy(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

def make(batch): return Choosy(), (torch.zeros(batch, 4),)
"""
CUSTOM = """
@torch.library.custom_op("{space}::thrice", mutates_args=())
def thrice(x: torch.Tensor) -> torch.Tensor:
    return 3 * x
{fake}
class Custom(nn.Module):
    def forward(self, x):
        return thrice(x) + 1

def make(batch): return Custom(), (torch.zeros(batch, 4),)
"""
FAKE = """
@thrice.register_fake
def _(x):
    return torch.empty_like(x)
"""


def test_control_flow_on_data_names_the_line_and_the_way_out(factory_file):
    with pytest.raises(ValueError, match="data-dependent control flow") as error:
        capture(factory_file(BRANCH), 1)
    text = str(error.value)
    assert re.search(r"mine\.py:6: if x\.sum\(\) > 0:", text)
    assert "torch.where" in text
    assert "\n" not in text


def test_an_operator_without_a_shape_rule_is_named_and_told_how_to_get_one(factory_file):
    with pytest.raises(ValueError, match="operator 'bare_space::thrice' has no shape") as error:
        capture(factory_file(CUSTOM.format(space="bare_space", fake=""), "bare_op.py"), 1)
    assert "@torch.library.register_fake('bare_space::thrice')" in str(error.value)


def test_an_operator_with_a_shape_rule_is_captured_and_listed_as_uncosted(factory_file):
    graph = capture(factory_file(CUSTOM.format(space="full_space", fake=FAKE), "full_op.py"), 1)
    (name,) = graph.uncosted_ops
    op = graph.by_name[name]
    assert (op.flops, op.bytes_read, op.bytes_written) == (0, 16, 16)


def test_more_tokens_than_a_model_has_positions_are_refused():
    with pytest.raises(ValueError, match="zoo:gpt2 has 1,024 positions, got 5,000 tokens"):
        build_model("zoo:gpt2", 1, "float32", "meta", tokens=5000)
    with pytest.raises(ValueError, match="zoo:gpt2 has 1,024 positions, got 1,100 tokens"):
        capture_generation("zoo:gpt2", 1, "float32", prompt_tokens=1000, new_tokens=100)
