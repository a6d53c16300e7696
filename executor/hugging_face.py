"""Models of Hugging Face configurations: `transformers` builds them, nothing is downloaded."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = 128
AUDIO_SAMPLES = 16_000
"""One second of speech at 16 kHz, for models that read the waveform."""

Inputs = dict[str, Tensor]


def hugging_face(path: Path) -> tuple[str, Callable[..., tuple[nn.Module, Inputs]]]:
    """The name and the factory of a configuration: a config.json, or a folder that holds one.

    Raises:
        ValueError: transformers is missing, or the file is no configuration that it knows.
    """
    config, architecture = read_config(path)
    transformers = transformers_package()
    name = Path(path).resolve().parent.name if path.name == "config.json" else path.stem

    def build(batch: int, tokens: int | None = None) -> tuple[nn.Module, Inputs]:
        module: nn.Module = getattr(transformers, architecture)(config)
        return module, example_inputs(module, config, batch, tokens)

    return f"{name}-{architecture}" if name == path.stem else name, build


def transformers_package() -> Any:
    """The package transformers, told to be quiet.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "hf: models need the package transformers; pip install 'apportion[hf]'"
        ) from None
    transformers.logging.set_verbosity_error()
    return transformers


def read_config(path: Path) -> tuple[Any, str]:
    """The configuration, set up for one pass without cache, and the class that it names.

    Raises:
        ValueError: as `hugging_face`.
    """
    transformers = transformers_package()
    file = path / "config.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"hf:{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"hf:{path}: not a JSON file: {error}") from None
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise ValueError(f"hf:{path}: a configuration needs the key 'model_type'")
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if raw["model_type"] not in known:
        raise ValueError(
            f"hf:{path}: transformers {transformers.__version__} has no model_type "
            f"'{raw['model_type']}'; a newer one may: pip install -U 'apportion[hf]'"
        )
    try:
        config = known[raw["model_type"]].from_dict(raw)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"hf:{path}: transformers refuses the configuration: {reason}") from error
    for part in [config, *(v for v in vars(config).values() if hasattr(v, "model_type"))]:
        part.use_cache = False
        part.apply_spec_augment = False  # it masks by random numbers, only in training
        if any(key.startswith(("n_", "num_")) and "experts" in key for key in vars(part)):
            part._experts_implementation = "grouped_mm"  # one product per expert, weights in place
    return config, _architecture(transformers, config, path)


def _architecture(transformers: Any, config: Any, path: Path) -> str:
    """The class that the configuration names, else the bare model of its type."""
    for name in config.architectures or []:
        if hasattr(transformers, name):
            return str(name)
    if config.architectures:
        raise ValueError(
            f"hf:{path}: transformers {transformers.__version__} has no class "
            f"{', '.join(config.architectures)}"
        )
    mapping = transformers.models.auto.modeling_auto.MODEL_MAPPING_NAMES
    if config.model_type not in mapping:
        raise ValueError(f"hf:{path}: set 'architectures' to the class to build")
    name = mapping[config.model_type]
    return str(name if isinstance(name, str) else name[0])


def example_inputs(module: nn.Module, config: Any, batch: int, tokens: int | None) -> Inputs:
    """Inputs by name for what the module reads: token ids, pixels, or sound.

    Raises:
        ValueError: more tokens than the model has positions, or an input that we cannot make.
    """
    reads = inspect.signature(module.forward).parameters
    main = str(getattr(module, "main_input_name", "input_ids"))
    text = getattr(config, "text_config", None) or config
    count = _num_tokens(text, tokens)
    makers: dict[str, Callable[[], Tensor]] = {
        "input_ids": lambda: _ids(text, batch, count),
        "pixel_values": lambda: _pixels(config, batch),
        "input_features": lambda: torch.randn(
            batch, _mel_bins(config), 2 * getattr(config, "max_source_positions", 1500)
        ),
        "input_values": lambda: torch.randn(batch, AUDIO_SAMPLES),
    }
    if main not in makers:
        raise ValueError(
            f"{type(module).__name__} reads '{main}', for which there is no example input; "
            "write a factory: python:FILE.py:FACTORY"
        )
    wanted = [main]
    if main in ("input_ids", "pixel_values") and {"input_ids", "pixel_values"} <= set(reads):
        wanted = ["input_ids", "pixel_values"] if _reads_both(config) else [main]
    inputs = {name: makers[name]() for name in wanted}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in reads:
        inputs["decoder_input_ids"] = _ids(text, batch, count)
    return inputs


def _reads_both(config: Any) -> bool:
    """Whether a model pairs images with texts as separate inputs (CLIP and its kind)."""
    return hasattr(config, "text_config") and not hasattr(config, "image_token_id")


def _num_tokens(config: Any, asked: int | None) -> int:
    """The tokens asked for, else 128, or the model's positions where those are fewer."""
    names = ("max_position_embeddings", "max_target_positions")
    limit = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    if asked is None:
        return min(TOKENS, limit or TOKENS)
    if limit and asked > limit:
        raise ValueError(
            f"model.tokens must be at most {limit} (the model's positions), got {asked}"
        )
    return asked


def _ids(config: Any, batch: int, tokens: int) -> Tensor:
    return torch.randint(int(config.vocab_size), (batch, tokens))


def _pixels(config: Any, batch: int) -> Tensor:
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else (size[0], size[1])
    return torch.randn(batch, int(getattr(vision, "num_channels", 3)), height, width)


def _mel_bins(config: Any) -> int:
    return int(getattr(config, "num_mel_bins", 80))
