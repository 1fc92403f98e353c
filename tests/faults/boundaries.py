"""Which boundaries the fault tests hit, for the end of the run's output."""

from __future__ import annotations

import threading
from collections import Counter

HITS: Counter[tuple[str, str, str]] = Counter()
_LOCK = threading.Lock()


def hit(server: str, call: str, fault: str) -> None:
    """Note that this fault happened at this call; `server` says who talks to whom."""
    with _LOCK:
        HITS[server, call, fault] += 1


def count() -> int:
    """How many different calls a fault hit."""
    return len({(server, call) for server, call, _ in HITS})


def lines() -> list[str]:
    """Under each `server` one line a call: how often each fault hit it."""
    found: dict[str, dict[str, list[str]]] = {}
    for (server, call, fault), times in sorted(HITS.items()):
        found.setdefault(server, {}).setdefault(call, []).append(f"{fault} {times}x" if times > 1 else fault)
    return [
        line
        for server, calls in found.items()
        for line in (server, *(f"  {call}: {', '.join(faults)}" for call, faults in calls.items()))
    ]
