"""Reading and writing YAML and JSON documents as frozen data classes.

pydantic checks types and unknown keys; this module turns its findings into one sentence that
names the file, the key, the value and what is accepted.
"""

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_json

T = TypeVar("T")

FASTEST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader in C reads the catalog ten times faster; not every build of PyYAML has it."""


class Loader(FASTEST):  # type: ignore[misc,valid-type]
    """Refuses a key that is given twice, of which YAML would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """Read a mapping whose keys differ."""
        known = set[str]()
        for key, _ in node.value:
            if key.value in known and isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark
                )
            known.add(str(key.value))
        return super().construct_mapping(node, deep)


STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Set as `__pydantic_config__` on every data class that is read from a file."""


_adapters: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def read_raw(path: Path) -> Any:
    """Parse a YAML or JSON file.

    Raises:
        ValueError: the file is missing, a folder, not text, or not YAML/JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error})") from None
    try:
        return json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply to be read") from None
    except ValueError as error:  # JSONDecodeError, or a number of more digits than Python reads
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise ValueError(f"{path}: not {kind}: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def read(path: Path, kind: type[T]) -> T:
    """Read a document and check it against the data class `kind`.

    Raises:
        ValueError: as `read_raw` and `parse`.
    """
    return parse(read_raw(path), kind, str(path))


def parse(raw: Any, kind: type[T], where: str) -> T:
    """Check parsed data against the data class `kind`; `where` names its origin in errors.

    Raises:
        ValueError: an unknown or missing key, or a value that is not accepted.
    """
    try:
        return _adapter(kind).validate_python(raw)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise ValueError(f"{where}: {_explain(error, kind)}") from None


def to_plain(value: Any) -> Any:
    """Turn a data class into dicts, lists and numbers, as JSON holds them."""
    return _adapter(type(value)).dump_python(value, mode="json")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all (a temporary file, then a rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Write plain data as indented JSON, whole or not at all."""
    write_text(path, to_json(document, indent=1, inf_nan_mode="constants").decode() + "\n")


def nearest(name: str, names: Iterator[str] | list[str]) -> str:
    """Word a suggestion: '; did you mean 'x'?' or the list of what is accepted."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; accepted: {', '.join(known)}"


def named(known: Mapping[str, T], name: str, subject: str) -> T:
    """The entry of a name.

    Raises:
        ValueError: there is none; the message begins with the subject and names the nearest.
    """
    if name not in known:
        raise ValueError(f"{subject} '{name}'{nearest(name, list(known))}")
    return known[name]


UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def _explain(error: ValidationError, kind: Any) -> str:
    unknown = [e for e in error.errors() if e["type"] in UNKNOWN_KEY]
    first = (unknown or error.errors())[0]
    location = [str(part) for part in first["loc"] if not _is_union_branch(str(part))]
    key = ".".join(location)
    if first["type"] in UNKNOWN_KEY:
        return f"unknown key '{key}'{nearest(location[-1], _keys_at(kind, location[:-1]))}"
    if first["type"] in ("missing", "missing_argument"):
        return f"missing key '{key}'"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        subject, _, rest = message.partition(": ")
        message = rest if rest and subject in (key, *location) else message
        return f"{key}: {message}" if key else message
    return f"{key or 'document'}: {_worded(message)}, got {first['input']!r}"


def _worded(message: str) -> str:
    """Pydantic's words for Python's types in those of a file."""
    if message.startswith("Input should be a dictionary or an instance of"):
        return "must map keys to values"
    message = message.replace("a valid tuple", "a list")
    return message.replace("a valid dictionary", "a mapping of keys to values")


def _is_union_branch(part: str) -> bool:
    branches = ("function-", "dict[", "list[", "tuple[", "literal[", "[key]")
    return part.startswith(branches) or part in ("str", "float", "int")


def _keys_at(kind: Any, location: list[str]) -> list[str]:
    """Field names of the data class found by walking `location` from `kind`."""
    for part in location:
        hints = get_type_hints(kind) if is_dataclass(kind) else {}
        kind = hints.get(part) or next(iter(get_args(kind)[-1:]), kind)
        kind = next((arg for arg in get_args(kind) if is_dataclass(arg)), kind)
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []
