"""Generation steps of Hugging Face decoders, with the cache of keys and values as inputs."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from executor.hugging_face import read_config, transformers_package


class Step(nn.Module):
    """Logits of the last token, for new tokens after those in the cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        takes = inspect.signature(model.forward).parameters
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def forward(self, tokens: Tensor, *past: Tensor) -> Tensor:
        """Map token ids (batch, new) and the cache of each layer to (batch, 1, vocabulary)."""
        cache = self.cache(past)
        out: Any = self.model(
            input_ids=tokens, past_key_values=cache, use_cache=True, **self.options
        )
        logits: Tensor = out.logits
        return logits[:, -1:]

    def cache(self, past: tuple[Tensor, ...]) -> Any:
        """A cache of transformers that holds the given tensors, not copies of them."""
        cache = transformers_package().DynamicCache(config=self.model.config)
        for i in range(0, len(past), 2):
            layer = cache.layers[i // 2]
            layer.lazy_initialization(past[i], past[i + 1])
            layer.keys, layer.values = past[i], past[i + 1]
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = past[i].shape[-2]
        return cache


def decoder_step(
    source: str,
) -> Callable[[int, int, int], tuple[nn.Module, tuple[Tensor, ...]]]:
    """The step of the decoder that a configuration describes.

    Raises:
        ValueError: the configuration is none of a causal language model.
    """
    config, architecture = read_config(Path(source))
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ValueError(
            f"hf:{source}: generation needs a causal language model, '{architecture}' is none"
        )
    text = config.get_text_config()

    def build(batch: int, new: int, past: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        model: nn.Module = getattr(transformers_package(), architecture)(config)
        tokens = torch.randint(int(text.vocab_size), (batch, new))
        count = 2 * text.num_hidden_layers if past else 0
        held = (torch.empty(_cache_shape(text, batch, past)) for _ in range(count))
        return Step(model).eval(), (tokens, *held)

    return build


def _cache_shape(config: Any, batch: int, past: int) -> tuple[int, int, int, int]:
    """Shape (batch, kv_heads, past, depth) of one layer's keys, and of its values.

    Raises:
        ValueError: some layers keep something else.
    """
    heads = getattr(config, "num_attention_heads", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    other = kinds - {"full_attention", "sliding_attention", "chunked_attention"}
    if not heads or other or getattr(config, "kv_lora_rank", None):
        kept = ", ".join(sorted(other)) or "a state of another kind"
        raise ValueError(
            f"model_type '{config.model_type}' keeps {kept} in place of keys and values for each "
            "token, which generation does not model"
        )
    depth = getattr(config, "head_dim", None) or config.hidden_size // heads
    return batch, getattr(config, "num_key_value_heads", None) or heads, past, depth
