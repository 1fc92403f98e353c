"""Settings from a mapping such as the environment: typed, with every fault reported at once.

A settings class is a frozen dataclass; the text below each field defends its default and becomes its documentation.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from aegis.errors import USAGE, Permanent

T = TypeVar("T")

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def duration(text: str) -> timedelta:
    """Read `6h`, `1d12h`, `90s`. Raises ValueError."""
    found = _DURATION.fullmatch(text)
    if not text or found is None:
        raise ValueError("must be a duration such as 6h, 90m or 1d12h")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    try:
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    except OverflowError as exc:
        raise ValueError("is too long a duration") from exc


def spell_duration(value: timedelta) -> str:
    """The shortest spelling that `duration` reads back: `6h`, `1d12h`, `90s` becomes `1m30s`."""
    seconds = value.total_seconds()
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{int(count)}{unit}")
    if seconds or not parts:
        parts.append(f"{seconds:g}s")
    return "".join(parts)


def load(cls: type[T], values: Mapping[str, str], *, prefix: str = "AEGIS_") -> T:
    """Build a settings dataclass from `<PREFIX><FIELD>` values. Raises Permanent that names every fault."""
    hints = get_type_hints(cls)
    taken: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for spec in dataclasses.fields(cls):  # type: ignore[arg-type]  # a dataclass by contract
        name = prefix + spec.name.upper()
        text = values.get(name, "")
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        try:
            if text:
                taken[spec.name] = _convert(hints[spec.name], text)
            elif required:
                faults[name] = "missing"
        except ValueError as exc:
            faults[name] = str(exc)
        if required and name in faults:
            taken[spec.name] = None  # stands in, so that the class can still check the others
    try:
        made = cls(**taken)
    except Permanent as exc:
        faults = {**exc.faults, **faults}
    except (TypeError, ValueError, AttributeError):
        if not faults:
            raise  # not the stand-in's doing
    if faults:
        raise Permanent("bad settings", faults, exit_code=USAGE)
    return made


def _convert(kind: Any, text: str) -> Any:
    if get_origin(kind) in (Union, UnionType):
        kind = next(arg for arg in get_args(kind) if arg is not type(None))
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return tuple(_convert(inner, part.strip()) for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("must be true or false")
        return text.lower() == "true"
    if kind is timedelta:
        return duration(text)
    if kind is Path:
        return Path(text)
    if kind is int:
        try:
            return int(text)
        except ValueError as exc:
            raise ValueError(f"must be a whole number, not {text[:40]!r}") from exc
    return text


MAX_YAML = 256 * 1024
"""Bytes. A thousand times the usual file, and parsed in a second."""


def read_yaml(text: str) -> dict[str, Any]:
    """Parse a configuration file: one mapping with text keys. Raises Permanent.

    Safe types only; duplicate keys are refused, because the last one would win in silence, and aliases, because a
    few lines of them make gigabytes.
    """
    import yaml  # the steps and a function without a file never need it

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not accepted")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(keys) != len(node.value) or not all(key.tag.endswith(":str") for key, _ in node.value):
                raise yaml.YAMLError(f"every key must be text, in the mapping at line {node.start_mark.line + 1}")
            if len(set(keys)) != len(keys):
                twice = sorted({key for key in keys if keys.count(key) > 1})
                raise yaml.YAMLError(f"duplicate key {', '.join(twice)} at line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep)

    if len(text.encode(errors="replace")) > MAX_YAML:
        raise Permanent(f"the file is larger than {MAX_YAML} bytes", exit_code=USAGE)
    try:
        found = yaml.load(text, Loader)  # noqa: S506  # a SafeLoader that refuses more
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        cause = "nested too deeply" if isinstance(exc, RecursionError) else " ".join(str(exc).split())
        raise Permanent(f"not a YAML file of ours: {cause}", exit_code=USAGE) from exc
    if not isinstance(found, dict):
        raise Permanent("the file must hold a mapping", exit_code=USAGE)
    return found
