"""The champion's serial, from the signed pointer: a change of it that is not ours is a roll-out by a person.

A hint and no more, so a store that is slow, gone or not trusted costs a decision little and is never its failure.
"""

from __future__ import annotations

import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from aegis.errors import USAGE, Permanent, Temporary

from .ports import Serials, no_serials

log = logging.getLogger("aegis.trigger")

WITHIN_S = 5.0
"""How long a decision waits for the serial: a caller waits 30 s at most, and the first read loads a bucket's client."""
REST_S = 60.0
"""How long a store that took longer is left alone. A reconcile asks for many models, one after the other."""


def champion_serial(models_uri: str, trusted_keys: Path | None, env: Mapping[str, str]) -> Serials:
    """A reader of serials; None where one can't be read or trusted, or not in time.

    Raises Permanent if the packages that it needs are not installed.
    """
    if not models_uri or trusted_keys is None:
        return no_serials
    _check_packages(models_uri)

    @cache  # one client for all reads, made by the first
    def store() -> Any:
        from aegis.storage import open_store

        return open_store(models_uri, env=env)

    def read(environment: str, model: str) -> str | None:
        from aegis import pointer, signature  # cryptography: only for who waits for a roll-out

        try:
            found = pointer.read(store(), signature.load_keys(trusted_keys), environment, model)
        except (Temporary, Permanent) as exc:
            log.warning("the pointer cannot be read", extra={"model": model, "error": str(exc)})
            return None
        return str(found[0].serial) if found else None

    return in_time(read)


def in_time(read: Serials) -> Serials:
    """`read` on a thread of its own: no client of a bucket bounds a whole call as tightly as a decision needs it."""
    rests_until = float("-inf")

    def bounded(environment: str, model: str) -> str | None:
        nonlocal rests_until
        if time.monotonic() < rests_until:
            return None
        answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # A daemon: a call that hangs must not keep the process from ending.
        threading.Thread(target=lambda: answers.put(_safely(read, environment, model)), daemon=True).start()
        try:
            return answers.get(timeout=WITHIN_S)
        except queue.Empty:
            rests_until = time.monotonic() + REST_S
            log.warning("the pointer was not read in time", extra={"model": model, "within_s": WITHIN_S})
            return None

    return bounded


def _safely(read: Serials, environment: str, model: str) -> str | None:
    try:
        return read(environment, model)
    except Exception:  # the outermost boundary of the thread: who waits must get an answer
        log.exception("reading the pointer failed unexpectedly")
        return None


_CLIENTS = {"s3": ("boto3",), "gs": ("google.cloud.storage",)}


def _check_packages(models_uri: str) -> None:
    """Say at the start what would fail at the first read. Looks, but loads no client: a start must be quick."""
    clients = _CLIENTS.get(models_uri.partition("://")[0], ())
    missing = [name for name in ("cryptography", *clients) if not _installed(name)]
    if missing:
        fault = f"needs {', '.join(missing)}: install the extra `sign`, or leave it unset"
        raise Permanent("bad settings", {"AEGIS_MODELS_URI": fault}, exit_code=USAGE)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # a package above it is missing
        return False
