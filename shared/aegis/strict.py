"""JSON without the laxities of most parsers. Pure, and without a dependency, as every image reads some."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 64
"""Levels of JSON. Nothing of ours has more than six; the parser's own bound depends on the stack it runs on."""
_HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def strict_json(body: bytes) -> Any:
    """Parse JSON without the laxities of most parsers: no duplicate keys, NaN, BOM, bad UTF-8, half surrogate
    pairs or deep nesting, so that the result can always be spelled again.

    Raises ValueError with the cause.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        raise ValueError("starts with a byte order mark")
    try:
        value = _STRICT.decode(body.decode("utf-8"))
        _check_depth(value, body)
        if _HALF_A_PAIR.search(body) is not None:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as exc:
        raise ValueError("has half of a surrogate pair") from exc
    except UnicodeDecodeError as exc:
        raise ValueError("is not UTF-8") from exc
    except json.JSONDecodeError as exc:
        raise ValueError(f"is not JSON ({exc.msg} at character {exc.pos})") from exc
    except RecursionError as exc:
        raise ValueError("is nested too deeply") from exc


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("has a duplicate key")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"has {name}, which JSON does not know")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("has a number out of range")
    return value


def _check_depth(value: Any, body: bytes) -> None:
    brackets = body.translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):  # each round takes the innermost level off
        if not brackets:
            return
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
    level = [value]  # text with brackets in it leaves some over: look at the value itself
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _inner(outer)]
        if not level:
            return
    raise ValueError("is nested too deeply")


def _inner(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
