"""Which dataset locations may be read. Pure.

A location comes from an alert, so it is checked against the owner's prefixes before anything is done with it, and
again by the step that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_LENGTH = 1024
_BASE = re.compile(r"(?:(?:s3|gs)://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]|file://)(?:/[A-Za-z0-9._=+@, -]*)*", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9_=+@,-][A-Za-z0-9._=+@,-]{0,254}", re.ASCII)
# No percent sign, brace, quote or control character can pass: such text never reaches a template engine.


def prefix_fault(prefix: str) -> str | None:
    """Say what is wrong with an operator's prefix, or None."""
    if _BASE.fullmatch(prefix) is None or ".." in prefix.split("/"):
        return "must be s3://bucket/..., gs://bucket/... or, on one machine, file:///..."
    return None


def fault(uri: str, prefixes: Sequence[str]) -> str | None:
    """Say what is wrong with a dataset location, or None.

    It must lie below one of `prefixes` (s3://bucket/..., gs://bucket/..., and on one machine file:///...); an empty
    list allows none. What follows the prefix is the alert's word, and held to plain segments.
    """
    if len(uri) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    if uri.partition("://")[0] not in ("s3", "gs", "file"):
        return "must start with s3://, gs:// or, on one machine, file://"
    bases = [prefix.rstrip("/") for prefix in prefixes if prefix_fault(prefix) is None]
    # The boundary is a segment's: s3://data must not allow s3://data-of-others.
    below = [uri[len(base) :] for base in bases if uri == base or uri.startswith(base + "/")]
    if not below:
        return "is not below an allowed dataset prefix" + ("" if prefixes else " (none is configured)")
    segments = min(below, key=len).removeprefix("/").removesuffix("/").split("/")
    if segments != [""] and not all(_SEGMENT.fullmatch(segment) for segment in segments):
        return "its path may hold only letters, digits and . _ = + @ , - and no empty, hidden or '..' segment"
    return None
