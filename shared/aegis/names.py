"""What names and aliases may look like, and text made fit to show. Pure."""

from __future__ import annotations

import hashlib
import re

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
"""What a model, an environment or a version may be called."""
ALIAS = re.compile(r"(?!(?i:latest)$|[vV][0-9]+$)[A-Za-z0-9_-]{1,100}", re.ASCII)
"""What MLflow takes as an alias: no dots, and `latest`, `v1`, `v2` ... it keeps for itself."""
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}", re.ASCII)
"""A container image as a pod names it, with tag or digest."""
SHA256 = re.compile(r"[0-9a-f]{64}")


def alias_of(environment: str, chosen: str | None = None) -> str:
    """The registry alias that follows an environment's champion: the one its owner chose, or the environment's own.

    `champion` in the environment `default`, `champion-<environment>` elsewhere. Where a dot had to go, a hash keeps
    `eu.prod` and `eu-prod` apart.
    """
    if chosen or environment == "default":
        return chosen or "champion"
    plain = environment.replace(".", "-")
    mark = "" if plain == environment else "-" + hashlib.sha256(environment.encode()).hexdigest()[:8]
    return f"champion-{plain}{mark}"


def printable(text: str) -> str:
    """Foreign text with a replacement sign for what cannot be seen: control characters, and those that turn lines."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
