"""The receiver against limits measured in the same run: `python -m benchmarks.receiver`, under four minutes.

One core for the server, another for load and sink. Five runs, medians; raw output in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import uvloop
from benchmarks._load import (
    RESULTS,
    ROOT,
    Bound,
    Sink,
    cores,
    free_port,
    load,
    median,
    memory_mib,
    post,
    report,
    server,
)

UVICORN = ["--loop", "uvloop", "--http", "httptools", "--log-level", "error", "--no-access-log", "--lifespan", "off"]
KINDS = ("receiver", "bare, raw pool", "bare, aiohttp")
APPS = {"bare, raw pool": "benchmarks._bare:raw", "bare, aiohttp": "benchmarks._bare:aiohttp_app"}


def payload(alerts: int, seed: int) -> bytes:
    """As Alertmanager sends it, with labels and annotations of usual length: 5 alerts take 4.2 KB."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    made: list[dict[str, Any]] = []
    for index in range(alerts):
        model = f"model-{seed:03}-{index:03}"
        labels = {
            "alertname": "ModelDrift",
            "environment": "production",
            "feature_name": "session_length",
            "instance": "10.0.0.7:8000",
            "job": "drift-exporter",
            "model_name": model,
            "model_version": "7",
            "severity": "critical",
        }
        annotations = {
            "dataset_uri": f"s3://training-data/{model}/2026-01/",
            "description": "The population stability index of session_length is 0.31, above its bound of 0.2.",
            "drift_score": "0.31",
            "summary": f"Drift on {model}",
        }
        made.append(
            {
                "status": "firing",
                "labels": labels,
                "annotations": annotations,
                "startsAt": now,
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "http://prometheus.example:9090/graph?g0.expr=model_drift_psi+%3E+0.2&g0.tab=1",
                "fingerprint": _fingerprint(labels),
            }
        )
    envelope: dict[str, Any] = {"receiver": "aegis", "status": "firing", "version": "4", "truncatedAlerts": 0}
    envelope |= {"groupLabels": {"alertname": "ModelDrift"}, "commonLabels": {"alertname": "ModelDrift"}}
    envelope |= {"commonAnnotations": {}, "externalURL": "http://alertmanager.example:9093"}
    envelope |= {"groupKey": '{}:{alertname="ModelDrift"}', "alerts": made}
    return json.dumps(envelope, separators=(",", ":")).encode()


def _fingerprint(labels: dict[str, str]) -> str:
    value = 0xCBF29CE484222325
    for byte in b"".join(f"{name}".encode() + b"\xff" + labels[name].encode() + b"\xff" for name in sorted(labels)):
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return f"{value:016x}"


def start(kind: str, port: int, sink_port: int, core: int) -> AbstractContextManager[tuple[int, float]]:
    base = ["-m", "uvicorn", "--port", str(port), *UVICORN]
    if kind == "receiver":
        env = {
            "K_SINK": f"http://127.0.0.1:{sink_port}/",
            "AEGIS_SEAL_KEY_FILE": str(RESULTS / "seal.key"),
            "FUNCTION_TARGET": "main",
            "FUNCTION_SOURCE": str(ROOT / "functions/alert_receiver/main.py"),
        }
        return server([*base, "functions_framework.aio:app"], env, f"http://127.0.0.1:{port}/health/readiness", core)
    return server([*base, APPS[kind]], {"SINK_PORT": str(sink_port)}, f"http://127.0.0.1:{port}/", core)


async def measure(kind: str, seconds: float, slow_count: int, core: int) -> dict[str, Any]:
    """One run of one server."""
    sink = Sink()
    listener = await sink.start()
    port = free_port()
    five = [post("/alertmanager", payload(5, seed)) for seed in range(64)]
    big = [post("/alertmanager", payload(200, 900))]
    found: dict[str, Any] = {}
    starting = start(kind, port, sink.port, core)
    pid, cold_s = await asyncio.to_thread(starting.__enter__)
    found["cold_start_ms"] = round(cold_s * 1000, 1)
    try:
        found["idle_mib"] = memory_mib(pid)
        await load(port, five, in_flight=16, count=500)  # warm
        for in_flight in (1, 16):
            sink.count = 0
            measured = await load(port, five, in_flight=in_flight, seconds=seconds)
            assert set(measured.statuses) == {200}, measured.statuses
            assert sink.count == 5 * len(measured.latencies_s), "the sink has every event"
            found[f"c{in_flight}"] = {
                "events_per_s": round(sink.count / measured.seconds),
                "p50_ms": measured.percentile_ms(0.5),
                "p99_ms": measured.percentile_ms(0.99),
                "requests": len(measured.latencies_s),
            }
        sink.delay_s = 0.003
        measured = await load(port, big, in_flight=1, count=slow_count + 1)
        found["200_alerts_3ms"] = {
            "median_ms": round(1000 * statistics.median(measured.latencies_s[1:]), 2),
            "requests": slow_count,
        }
        found["loaded_mib"] = memory_mib(pid)
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)
        listener.close()
    return found


def table(runs: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[Bound]]:
    """The figures as lines of Markdown, and what is demanded of them."""
    lines = ["| | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    rows: list[tuple[str, tuple[str, ...]]] = [(f"events/s, {c} in flight", (f"c{c}", "events_per_s")) for c in (1, 16)]
    rows += [(f"{p} ms, {c} in flight", (f"c{c}", f"{p}_ms")) for c in (1, 16) for p in ("p50", "p99")]
    rows += [("200 alerts, 3 ms sink: ms", ("200_alerts_3ms", "median_ms")), ("cold start ms", ("cold_start_ms",))]
    rows += [
        (f"{kind.upper()} {when} MiB", (f"{when}_mib", kind)) for when in ("idle", "loaded") for kind in ("pss", "rss")
    ]
    for name, path in rows:
        lines.append(f"| {name} | " + " | ".join(f"{median(runs[kind], *path):g}" for kind in KINDS) + " |")
    receiver, raw, same = (runs[kind] for kind in KINDS)
    events = ("c16", "events_per_s")
    slow, cold = ("200_alerts_3ms", "median_ms"), ("cold_start_ms",)
    bounds: list[Bound] = [
        ("events/s of the raw limit, 16 in flight", median(receiver, *events) / median(raw, *events), ">=", 0.15),
        ("events/s of the same client, 16 in flight", median(receiver, *events) / median(same, *events), ">=", 0.6),
        ("events/s, 16 in flight", median(receiver, *events), ">=", 5000),
        ("200 alerts against the raw limit", median(receiver, *slow) / median(raw, *slow), "<=", 1.5),
        ("cold start against bare uvicorn", median(receiver, *cold) / median(raw, *cold), "<=", 2.5),
    ]
    return lines, bounds


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=2.5, help="for each load")
    options = arguments.parse_args()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "seal.key").write_text("a key for the benchmark only")
    server_core, load_core = cores()
    os.sched_setaffinity(0, {load_core})
    busy = os.getloadavg()[0]
    began = time.perf_counter()
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for number in range(options.runs):
        for kind in KINDS:
            runs[kind].append(uvloop.run(measure(kind, options.seconds, 10, server_core)))
            print(number + 1, kind, json.dumps(runs[kind][-1]), flush=True)
    (RESULTS / "seal.key").unlink()
    size = f"medians of {options.runs} runs of {options.seconds:g} s; payloads of 5 alerts, {len(payload(5, 0))} bytes"
    took = f"load before {busy:.2f}, {time.perf_counter() - began:.0f} s"
    return report("receiver", f"Receiver: {size}; {took}.", *table(runs), runs)


if __name__ == "__main__":
    raise SystemExit(main())
