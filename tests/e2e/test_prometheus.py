"""A drift gauge rises in front of a real Prometheus and Alertmanager, and one retrain runs to its end, although the
sink of the receiver was down for half a minute when the alert came."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from retrain_trigger.model import Evidence
from tests.conftest import needs
from tests.e2e.machine import Machine
from tests.faults.proxy import FaultProxy
from tests.support import free_ports, until
from tests.train_model.datasets import digits
from tests.trigger.host import Host, receiver_host

OUTAGE_S = 30.0
MODEL = "drifting"


class Exporter:
    """What a drift detector exports: one gauge, which a test raises and lowers."""

    def __init__(self) -> None:
        self.score = 0.0
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = f'# TYPE model_drift_score gauge\nmodel_drift_score{{model_name="{MODEL}"}} {exporter.score}\n'
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @contextmanager
    def running(self) -> Iterator[Exporter]:
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join(10)


@contextmanager
def process(log: Path, *command: str) -> Iterator[None]:
    """A server that is ended by its pid."""
    with log.open("wb") as out:
        running = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=log.parent)
    try:
        yield
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # loopback
            return bool(answer.status == 200)
    except OSError:
        return False


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # loopback
        return str(answer.read().decode())


def total(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of a metric that carry these labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in wanted))


@dataclass
class Chain:
    """Exporter → Prometheus → Alertmanager → receiver → proxy → trigger, runner and MLflow of a running machine."""

    exporter: Exporter
    alertmanager: str
    receiver: Host
    sink: FaultProxy
    machine: Machine

    def failed(self) -> float:
        """Requests to the receiver that Alertmanager counts as failed."""
        return total(
            get(self.alertmanager + "/metrics"),
            "alertmanager_notification_requests_failed_total",
            integration="webhook",
        )

    def delivered(self, result: str) -> float:
        """Alerts with this result in deliveries that the receiver answered 2xx."""
        said = self.receiver.request("GET", "/metrics")[1].decode()
        return total(said, "aegis_receiver_alerts_total", result=result)

    def alert(self) -> dict[str, Any]:
        """The alert as Alertmanager's own API shows it."""
        found: list[dict[str, Any]] = json.loads(get(self.alertmanager + "/api/v2/alerts"))
        [alert] = found
        return alert

    def evidence(self) -> Evidence:
        [evidence] = self.machine.record(MODEL).status.evidence
        return evidence


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    prometheus, alertmanager = needs("prometheus"), needs("prometheus-alertmanager")
    home = tmp_path_factory.mktemp("prometheus")
    prometheus_port, alertmanager_port = free_ports(2)
    old, new, rest = digits()
    with ExitStack() as stack:
        exporter = stack.enter_context(Exporter().running())
        machine = stack.enter_context(Machine(home))
        sink = stack.enter_context(FaultProxy("receiver to sink, from Alertmanager", machine.ports["trigger"]))
        receiver = stack.enter_context(receiver_host(sink.url, home / "receiver.log", log_level="error"))
        receiver.ready()
        files = {
            "alertmanager.yml": {
                "route": {
                    "receiver": "aegis",
                    "group_by": ["alertname"],
                    "group_wait": "1s",
                    "group_interval": "1s",
                    "repeat_interval": "1s",
                },
                "receivers": [{"name": "aegis", "webhook_configs": [{"url": receiver.url + "/alertmanager"}]}],
            },
            "rules.yml": {
                "groups": [
                    {
                        "name": "drift",
                        "rules": [
                            {
                                "alert": "ModelDrift",
                                "expr": "model_drift_score > 0.2",
                                "for": "1s",
                                "labels": {"severity": "critical", "model_version": "1"},
                                "annotations": {"dataset_uri": machine.dataset("gauge", old + new + rest)},
                            }
                        ],
                    }
                ]
            },
            "prometheus.yml": {
                "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
                "rule_files": ["rules.yml"],
                "scrape_configs": [
                    {
                        "job_name": "detector",
                        "static_configs": [{"targets": [f"127.0.0.1:{exporter.server.server_port}"]}],
                    }
                ],
                "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager_port}"]}]}]},
            },
        }
        for name, content in files.items():
            (home / name).write_text(yaml.safe_dump(content))
        stack.enter_context(
            process(
                home / "alertmanager.log", alertmanager, "--config.file=alertmanager.yml",
                f"--storage.path={home / 'alertmanager'}", f"--web.listen-address=127.0.0.1:{alertmanager_port}",
                "--cluster.listen-address=",
            )
        )  # fmt: skip
        stack.enter_context(
            process(
                home / "prometheus.log", prometheus, "--config.file=prometheus.yml",
                f"--storage.tsdb.path={home / 'tsdb'}", f"--web.listen-address=127.0.0.1:{prometheus_port}",
                "--rules.alert.resend-delay=1s",
            )
        )  # fmt: skip
        url = f"http://127.0.0.1:{alertmanager_port}"
        until(lambda: answers(url + "/-/ready"), "Alertmanager is ready")
        until(lambda: answers(f"http://127.0.0.1:{prometheus_port}/-/ready"), "Prometheus is ready")
        yield Chain(exporter, url, receiver, sink, machine)


class TestAGaugeThatRises:
    """One story; the tests build on each other."""

    def test_while_the_sink_is_down_alertmanager_is_told_to_try_again(self, chain: Chain) -> None:
        chain.sink.down()
        chain.exporter.score = 0.9
        until(lambda: chain.failed() >= 1, "a failed notification")
        began = time.monotonic()
        until(lambda: time.monotonic() > began + OUTAGE_S, "the end of the outage")
        assert chain.failed() >= 5, "it went on trying"
        assert chain.delivered("forwarded") == 0
        assert chain.machine.workflows() == []

    def test_once_it_is_up_again_exactly_one_retrain_runs_to_its_end(self, chain: Chain) -> None:
        chain.sink.up()
        until(lambda: chain.delivered("forwarded") >= 1, "the delivery of the alert")
        record = chain.machine.ended(MODEL)
        assert record.status.retrain is not None
        assert record.status.retrain.outcome == "Promoted"
        assert chain.evidence().fingerprint == chain.alert()["fingerprint"]
        assert record.status.retrain.fingerprint == chain.alert()["fingerprint"]

    def test_repeats_double_nothing(self, chain: Chain) -> None:
        before = chain.delivered("forwarded")
        until(lambda: chain.delivered("forwarded") >= before + 3, "three more deliveries of the same alert")
        assert len(chain.machine.workflows()) == 1

    def test_a_gauge_that_falls_ends_the_alert_and_one_that_rises_again_is_held(self, chain: Chain) -> None:
        chain.exporter.score = 0.0
        until(lambda: chain.evidence().ends_at is not None, "the resolve in the ledger")
        before = chain.evidence().starts_at
        chain.exporter.score = 0.9
        until(lambda: chain.evidence().starts_at > before, "the alert's new beginning in the ledger")
        assert chain.machine.record(MODEL).status.history[-1].reason == "Cooldown"

    def test_at_the_end_there_is_one_workflow_one_run_and_one_version(self, chain: Chain) -> None:
        assert len(chain.machine.workflows()) == 1
        assert len(chain.machine.runs(MODEL)) == 1
        assert len(chain.machine.versions(MODEL)) == 1
        assert chain.delivered("rejected") == 0
