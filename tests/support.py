"""What tests of several parts need: a port, and the end of a wait."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

T = TypeVar("T")


def free_port() -> int:
    """A port that was free a moment ago."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def until(condition: Callable[[], T], what: str = "the condition", *, within_s: float = 120.0) -> T:
    """Wait for a condition and return what it gave; AssertionError that says what did not come."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)
    return found


def powerless() -> None:
    """Before a program starts: root may trace any process and read any file, as no container of ours may."""
    libc = ctypes.CDLL(None)
    for capability in range(64 if os.geteuid() == 0 else 0):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
