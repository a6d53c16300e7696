"""Efficiency models fitted to published measurements, for devices that nobody here measured.

Each file in `data/fitted` says for which devices its models hold: the kind and the figures that
their features need, or the devices by name. A calibrated profile keeps its own models.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from hardware.documents import STRICT, read
from hardware.efficiency import EfficiencyModel, LinearModel
from hardware.profile import DeviceKind, DeviceProfile

FOLDER = Path(__file__).parent / "data" / "fitted"


@dataclass(frozen=True)
class FittedModels:
    """Models by operator class and dtype ('matmul/float32'), and the devices that they are for.

    Attributes:
        kind: of the devices.
        needs: optional figures of a profile without which the models say nothing.
        devices: names of the devices; where empty, all of the kind that have the figures.
        fitted_on: profiles whose measurements went in.
    """

    __pydantic_config__ = STRICT

    kind: DeviceKind
    models: dict[str, EfficiencyModel | LinearModel]
    needs: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    fitted_on: tuple[str, ...] = ()

    def suit(self, profile: DeviceProfile) -> bool:
        """Whether the models hold for a device."""
        if self.devices:
            return profile.name in self.devices
        return profile.kind == self.kind and set(self.needs) <= profile.figures.keys()


@cache
def load_fitted(folder: Path = FOLDER) -> dict[str, FittedModels]:
    """The fitted models by the name of their file."""
    return {path.stem: read(path, FittedModels) for path in sorted(folder.glob("*.yaml"))}


def with_fitted(profile: DeviceProfile) -> DeviceProfile:
    """The profile with the fitted models that hold for it; those it has stay.

    Models for named devices go before those for a kind.
    """
    suitable = [fitted for fitted in load_fitted().values() if fitted.suit(profile)]
    suitable.sort(key=lambda fitted: bool(fitted.devices))
    models = {key: model for fitted in suitable for key, model in fitted.models.items()}
    return replace(profile, op_times=models | profile.op_times) if models else profile
