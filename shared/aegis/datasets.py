"""Which dataset locations may be read. Pure.

A location comes from an alert, so it is checked against the owner's prefixes before anything is done with it, and
again by the step that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_LENGTH = 1024
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9_=+@,-][A-Za-z0-9._=+@,-]{0,254}", re.ASCII)
# No percent sign, brace, quote, space or control character can pass: such text never reaches a template engine.


def fault(uri: str, prefixes: Sequence[str]) -> str | None:
    """Say what is wrong with a dataset location, or None.

    It must lie below one of `prefixes` (s3://bucket/..., gs://bucket/..., and on one machine file:///...); an empty
    list allows none.
    """
    if len(uri) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in ("s3", "gs", "file"):
        return "must start with s3://, gs:// or, on one machine, file://"
    host, _, path = rest.partition("/")
    if scheme == "file":
        if host:
            return "a file:// location has no host: write file:///path"
    elif _BUCKET.fullmatch(host) is None:
        return "has no valid bucket name"
    segments = path.removesuffix("/").split("/") if path else []
    if not all(_SEGMENT.fullmatch(segment) for segment in segments):
        return "its path may hold only letters, digits and . _ = + @ , - and no empty, hidden or '..' segment"
    if not any(_below(uri, prefix) for prefix in prefixes):
        return "is not below an allowed dataset prefix" + ("" if prefixes else " (none is configured)")
    return None


def _below(uri: str, prefix: str) -> bool:
    base = prefix.rstrip("/")
    # The boundary is a segment's: s3://data must not allow s3://data-of-others.
    return bool(base) and (uri == base or uri.startswith(base + "/"))
