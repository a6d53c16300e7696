"""Finding a device by a name that somebody else gave it."""

import difflib
import re
from collections.abc import Mapping
from functools import cache

from hardware.profile import DeviceProfile

MAKERS = {"nvidia", "tesla", "geforce", "amd", "instinct", "radeon", "google", "aws", "intel"}
"""Words that lead a name and tell no device from another."""


@cache
def words(name: str) -> tuple[str, ...]:
    """The telling words of a name in lower case: 'NVIDIA_A100-PCIE-40GB' → a100, pcie, 40gb."""
    plain = re.sub(r"\(.*?\)", " ", name.lower())
    return tuple(word for word in re.split(r"[^a-z0-9]+", plain) if word and word not in MAKERS)


def find_named(name: str, profiles: Mapping[str, DeviceProfile]) -> DeviceProfile:
    """The profile of this name, of this alias, or the only one with all words of the name.

    Raises:
        ValueError: none is meant, or several could be; they are listed.
    """
    if name in profiles:
        return profiles[name]
    asked = words(name)
    exact = [p for p in profiles.values() if asked in (words(n) for n in (p.name, *p.aliases))]
    if len(exact) == 1:
        return exact[0]
    near = candidates(name, profiles)
    if len(near) == 1:
        return near[0]
    if near:
        raise ValueError(f"device '{name}' could be: {', '.join(p.name for p in near)}; name one")
    close = difflib.get_close_matches(name, list(profiles), n=1)
    hint = f"did you mean '{close[0]}'?" if close else "`apportion devices` lists them"
    raise ValueError(f"unknown device '{name}'; {hint}")


def candidates(name: str, profiles: Mapping[str, DeviceProfile]) -> list[DeviceProfile]:
    """All profiles whose name has every word of this name, or one of whose aliases is it."""
    asked = words(name)
    return [
        profile
        for profile in profiles.values()
        if asked
        and (set(asked) <= set(words(profile.name)) or asked in map(words, profile.aliases))
    ]
