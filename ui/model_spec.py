"""The model of a scenario: its source, its sizes, its mode and its what-ifs."""

from dataclasses import dataclass, field
from typing import Literal

from hardware.documents import STRICT
from scheduler.ir.precision import Precision, Pruning
from simulator.arrivals import positive


@dataclass(frozen=True)
class ModelSpec:
    """What is run.

    Attributes:
        source: zoo:NAME, python:MODULE:FACTORY, python:FILE.py:FACTORY, hf:FILE, onnx:FILE,
            graph:FILE for a graph or a placement instance, or service:exponential, :deterministic
            or :lognormal for a queueing study without a model.
        mode: `inference`, `training` (a step: forward, backward, optimizer) or `generation`.
        tokens: read at once by a model of text, for inference and training.
        prompt_tokens, new_tokens: of a generation (128 each).
        optimizer, momentum: of training; adam unless it says sgd.
        mean_s, cv: of a service: the mean time of a batch, and its coefficient of variation where
            it is lognormal.
        precision, pruning: what-ifs, which are predicted and not run.
    """

    __pydantic_config__ = STRICT
    source: str
    batch: int = 1
    dtype: str = "float32"
    mode: Literal["inference", "training", "generation"] = "inference"
    tokens: int | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    optimizer: Literal["adam", "sgd"] | None = None
    momentum: float | None = None
    mean_s: float | None = None
    cv: float | None = None
    precision: Precision = field(default_factory=Precision)
    pruning: Pruning = field(default_factory=Pruning)

    def __post_init__(self) -> None:
        """Refuse empty sizes, and keys of another mode."""
        for key in ("batch", "tokens", "prompt_tokens", "new_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} must be at least 1, got {value}")
        belongs = {
            "tokens": ("inference", "training"),
            "prompt_tokens": ("generation",),
            "new_tokens": ("generation",),
            "optimizer": ("training",),
            "momentum": ("training",),
        }
        for key, modes in belongs.items():
            if getattr(self, key) is not None and self.mode not in modes:
                raise ValueError(f"{key} needs mode {' or '.join(modes)}, got mode {self.mode}")
        self._check_service()
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 and below 1, got {self.momentum}")
        if self.momentum is not None and self.optimizer != "sgd":
            raise ValueError("momentum needs optimizer: sgd")

    def _check_service(self) -> None:
        positive("model", mean_s=self.mean_s, cv=self.cv)
        if self.is_service and self.mean_s is None:
            raise ValueError(f"{self.source} needs mean_s: the seconds that a batch takes")
        if not self.is_service and (self.mean_s is not None or self.cv is not None):
            raise ValueError(f"mean_s and cv need a source service:…, got {self.source}")
        if self.is_service and self.mode != "inference":
            raise ValueError(f"{self.source} answers requests: mode inference, got {self.mode}")

    @property
    def is_service(self) -> bool:
        """Whether it is a server without a model."""
        return self.source.startswith("service:")

    @property
    def is_what_if(self) -> bool:
        """Whether the model differs from the one that its source builds."""
        return self.precision.is_what_if or self.pruning.ratio > 0

    def __str__(self) -> str:
        """Word it for a person: 'zoo:gpt2, batch 4, float32, training, weights int8'."""
        mode = "" if self.mode == "inference" else self.mode
        parts = (self.source, f"batch {self.batch}", self.dtype, mode)
        return ", ".join(part for part in (*parts, str(self.precision), str(self.pruning)) if part)
