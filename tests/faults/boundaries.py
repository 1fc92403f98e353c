"""Which boundaries the fault tests hit, for the end of the run's output."""

from __future__ import annotations

from collections import Counter

HITS: Counter[tuple[str, str, str]] = Counter()


def hit(server: str, call: str, fault: str) -> None:
    """Note that this fault happened at this call of this server."""
    HITS[server, call, fault] += 1


def lines() -> list[str]:
    """One line for each boundary: the server, the call, and how often each fault hit it."""
    by_call: dict[tuple[str, str], list[str]] = {}
    for (server, call, fault), count in sorted(HITS.items()):
        by_call.setdefault((server, call), []).append(f"{fault} {count}x" if count > 1 else fault)
    return [f"{server}: {call}: {', '.join(faults)}" for (server, call), faults in by_call.items()]
