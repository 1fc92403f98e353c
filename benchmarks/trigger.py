"""The trigger against limits measured in the same run: `python -m benchmarks.trigger`, about two minutes.

In process: a storm of new models (a submission each: ledger, budget and Workflow written) and repeats of firing alerts
(a hold each), against the very SQL statements that they make, sent raw on a fresh file of the same disk. As a server:
repeats, and the cold start against a bare uvicorn. Five runs, medians; raw output in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import tempfile
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvloop
from benchmarks._load import ROOT, Bound, cores, free_port, load, median, memory_mib, post, report, server

from aegis import events
from aegis.events import DriftEvent
from retrain_trigger import sqlite
from retrain_trigger.function import Settings, real_trigger
from retrain_trigger.policy import Kind
from retrain_trigger.trigger import Trigger

MODELS = 20
"""New models a ledger: the budget of an hour at its default."""
REPEATS = 50
Statements = list[tuple[str, tuple[object, ...]]]


def drift(model: int) -> DriftEvent:
    """An alert that fires now; times have milliseconds, as on the wire."""
    seen = datetime.now(UTC)
    seen = seen.replace(microsecond=seen.microsecond // 1000 * 1000)
    return DriftEvent(
        firing=True,
        source="/alertmanager/default",
        environment="production",
        model=f"model-{model:03}",
        version="7",
        fingerprint=f"{model:016x}",
        starts_at=seen - timedelta(minutes=1),
        seen=seen,
        severity="critical",
        dataset_uri="s3://training-data/2026-01/",
        feature="session_length",
        summary="Drift of session_length",
        labels={"alertname": "ModelDrift", "model_name": f"model-{model:03}", "severity": "critical"},
    )


def trigger(ledger: Path) -> Trigger:
    return real_trigger(
        Settings(
            ledger=ledger,
            dataset_prefixes=("s3://training-data/",),
            create_unknown=True,
            budget=MODELS,
            trust_loopback=True,
        )
    )


def storm(own: Trigger) -> float:
    """Seconds for a submission for each new model."""
    found = [drift(number) for number in range(MODELS)]
    began = time.perf_counter()
    kinds = [own.event(event).decision.kind for event in found]
    took = time.perf_counter() - began
    assert kinds == [Kind.SUBMIT] * MODELS
    return took


def repeats(own: Trigger) -> float:
    """Seconds for a hold for each model, again and again."""
    found = [drift(number) for number in range(MODELS)] * REPEATS
    began = time.perf_counter()
    kinds = {own.event(event).decision.kind for event in found}
    took = time.perf_counter() - began
    assert kinds == {Kind.HOLD}
    return took


def raw(connection: sqlite3.Connection, statements: Statements) -> float:
    """Seconds for the bare statements."""
    began = time.perf_counter()
    for statement, values in statements:
        connection.execute(statement, values).fetchall()
    return time.perf_counter() - began


def recorded(home: Path) -> tuple[Statements, Statements]:
    """The statements of a storm and of the repeats after it."""
    made: Statements = []
    before = sqlite.Objects._run

    def run(self: sqlite.Objects, statement: str, *values: object) -> sqlite3.Cursor:
        made.append((statement, values))
        return before(self, statement, *values)

    sqlite.Objects._run = run  # type: ignore[method-assign]  # to see the statements, no code of the product
    try:
        own = trigger(home / "recorded.db")
        storm(own)
        split = len(made)
        repeats(own)
    finally:
        sqlite.Objects._run = before  # type: ignore[method-assign]
    return made[:split], made[split:]


def in_process(home: Path, rounds: int) -> dict[str, Any]:
    """One run: rounds of storms, each on fresh ledgers, ours and raw in turn; then repeats on the last one."""
    asked, held = recorded(home)
    seconds = {"submit": 0.0, "raw submit": 0.0, "hold": 0.0, "raw hold": 0.0}
    for number in range(rounds):
        own = trigger(home / f"{number}.db")
        assert own.reconcile() == {}  # opens the file
        connection = sqlite3.connect(home / f"raw-{number}.db", isolation_level=None)
        sqlite._prepare(connection, time.monotonic() + 5)
        seconds["submit"] += storm(own)
        seconds["raw submit"] += raw(connection, asked)
        seconds["hold"] += repeats(own)
        seconds["raw hold"] += raw(connection, held)
        connection.close()
    counts = {"submit": rounds * MODELS, "hold": rounds * MODELS * REPEATS}
    rates = {name: round(counts[name.removeprefix("raw ")] / took) for name, took in seconds.items()}
    per = {"submit": len(asked) / MODELS, "hold": len(held) / (MODELS * REPEATS)}
    return {"per_s": rates, "decisions": counts, "statements a decision": per}


def start(kind: str, port: int, home: Path, core: int) -> AbstractContextManager[tuple[int, float]]:
    base = ["-m", "uvicorn", "--port", str(port), "--loop", "uvloop", "--http", "httptools", "--log-level", "error"]
    base += ["--no-access-log", "--lifespan", "off"]
    if kind == "trigger":
        env = {
            "AEGIS_LEDGER": str(home / "served.db"),
            "AEGIS_DATASET_PREFIXES": "s3://training-data/",
            "AEGIS_CREATE_UNKNOWN": "true",
            "AEGIS_TRUST_LOOPBACK": "true",
            "AEGIS_LOG_LEVEL": "error",
            "FUNCTION_TARGET": "main",
            "FUNCTION_SOURCE": str(ROOT / "functions/retrain_trigger/main.py"),
        }
        return server([*base, "functions_framework.aio:app"], env, f"http://127.0.0.1:{port}/health/readiness", core)
    return server([*base, "benchmarks._bare:raw"], {}, f"http://127.0.0.1:{port}/", core)


async def served(home: Path, seconds: float, core: int) -> dict[str, Any]:
    """One run of the server under repeats of one batch of models."""
    port = free_port()
    found: dict[str, Any] = {}
    requests = []
    for number in range(MODELS):
        headers, body = events.encode(events.to_cloudevent(drift(number)))
        requests.append(post("/", body, headers))
    with start("trigger", port, home, core) as (pid, cold_s):
        found["cold_start_ms"] = round(cold_s * 1000, 1)
        found["idle_mib"] = memory_mib(pid)
        warm = await load(port, requests, in_flight=1, count=MODELS)
        assert set(warm.statuses) == {200}, warm.statuses
        for in_flight in (1, 16):
            measured = await load(port, requests, in_flight=in_flight, seconds=seconds)
            assert set(measured.statuses) == {204}, measured.statuses
            found[f"c{in_flight}"] = {
                "events_per_s": round(len(measured.latencies_s) / measured.seconds),
                "p50_ms": measured.percentile_ms(0.5),
                "p99_ms": measured.percentile_ms(0.99),
                "requests": len(measured.latencies_s),
            }
        found["loaded_mib"] = memory_mib(pid)
    with start("bare", free := free_port(), home, core) as (_, bare_s):
        assert free
        found["bare_cold_start_ms"] = round(bare_s * 1000, 1)
    return found


def table(runs: list[dict[str, Any]]) -> tuple[list[str], list[Bound]]:
    """The figures as lines of Markdown, and what is demanded of them."""
    rate = {name: median(runs, "per_s", name) for name in runs[0]["per_s"]}
    per = runs[0]["statements a decision"]
    lines = ["| in one process | trigger | the same statements, raw | statements | ratio |", "|---" * 5 + "|"]
    for name, what in (("submit", "submissions/s, new models"), ("hold", "holds/s, repeats of firing alerts")):
        share = rate[name] / rate[f"raw {name}"]
        lines.append(f"| {what} | {rate[name]:g} | {rate[f'raw {name}']:g} | {per[name]:g} | {share:.2g} |")
    lines += ["", "| as a server, repeats | 1 in flight | 16 in flight |", "|---|---|---|"]
    for name in ("events_per_s", "p50_ms", "p99_ms"):
        lines.append(f"| {name} | {median(runs, 'c1', name):g} | {median(runs, 'c16', name):g} |")
    lines += ["", "| | idle | loaded |", "|---|---|---|"]
    for kind in ("pss", "rss"):
        idle, loaded = median(runs, "idle_mib", kind), median(runs, "loaded_mib", kind)
        lines.append(f"| {kind.upper()} MiB | {idle:g} | {loaded:g} |")
    ours, bare = median(runs, "cold_start_ms"), median(runs, "bare_cold_start_ms")
    lines += ["", f"Cold start to the first 200 of readiness: {ours:g} ms; bare uvicorn: {bare:g} ms."]
    bounds: list[Bound] = [
        ("submissions/s of the same statements raw", rate["submit"] / rate["raw submit"], ">=", 0.5),
        ("cold start against bare uvicorn", ours / bare, "<=", 2.5),
    ]
    return lines, bounds


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--rounds", type=int, default=10, help="of a storm, in a run")
    arguments.add_argument("--seconds", type=float, default=2.5, help="for each load")
    options = arguments.parse_args()
    server_core, load_core = cores()
    os.sched_setaffinity(0, {load_core})
    busy, began = os.getloadavg()[0], time.perf_counter()
    runs = []
    for number in range(options.runs):
        with tempfile.TemporaryDirectory(dir=ROOT) as folder:  # the disk of the checkout: /tmp may be memory
            runs.append(in_process(Path(folder), options.rounds))
            runs[-1] |= uvloop.run(served(Path(folder), options.seconds, server_core))
        print(number + 1, json.dumps(runs[-1]), flush=True)
    size = f"medians of {options.runs} runs; {options.rounds} storms of {MODELS} models a run, {REPEATS} repeats each"
    took = f"load before {busy:.2f}, {time.perf_counter() - began:.0f} s"
    return report("trigger", f"Trigger on SQLite: {size}; {took}.", *table(runs), runs)


if __name__ == "__main__":
    raise SystemExit(main())
