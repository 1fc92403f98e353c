"""One machine as its user has it: `aegis up` as a process, alerts by curl, the commands beside it, kills in between."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from aegis import package, signature
from aegis.pointer import Pointer, read
from aegis.storage import open_store
from tests.conftest import needs
from tests.e2e.machine import Machine, alive, as_json, below
from tests.storage.servers import s3
from tests.support import until
from tests.train_model.datasets import cifar_batch, digits

EXAMPLE = (
    b'{"version":"4","groupKey":"{}:{alertname=\\"ModelDrift\\"}","status":"firing","receiver":"aegis","groupLabels":'
    b'{"alertname":"ModelDrift"},"commonLabels":{"alertname":"ModelDrift","severity":"critical"},"alerts":[{"status":'
    b'"firing","labels":{"alertname":"ModelDrift","severity":"critical"},"annotations":{"summary":"model drift '
    b'detected","dataset_uri":"s3://my-staging-bucket/datasets/cifar/v2/"},"startsAt":"2025-01-01T00:00:00Z"}]}'
)
"""As a user posts it: no model, no fingerprint, no endsAt, an s3 location, begun long ago."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A running machine whose bucket holds CIFAR binary batches."""
    old, new, rest = digits()
    with s3("my-staging-bucket") as env:
        client = boto3.client(
            "s3", endpoint_url=env["AWS_ENDPOINT_URL"], aws_access_key_id="test", aws_secret_access_key="test",
            region_name="us-east-1",
        )  # fmt: skip
        for number, part in enumerate((old, new, rest), 1):
            key = f"datasets/cifar/v2/data_batch_{number}.bin"
            client.put_object(Bucket="my-staging-bucket", Key=key, Body=cifar_batch(part))
        models = [{"model": "careful", "approval": True}]
        with Machine(tmp_path_factory.mktemp("up"), env, models=models) as machine:
            yield machine


def champion(machine: Machine, model: str) -> Pointer:
    """The verified pointer of a model."""
    store = open_store(machine.state.models.as_uri(), env={})
    found = read(store, signature.load_keys(machine.state.trusted), "default", model)
    assert found is not None
    return found[0]


def curl(machine: Machine, tmp_path: Path) -> str:
    """Post the example with the documented command; the status."""
    (tmp_path / "test-alert.json").write_bytes(EXAMPLE)
    done = subprocess.run(
        [
            needs("curl"), "-sS", "-o", str(tmp_path / "answer"), "-w", "%{http_code}", "-XPOST",
            "-H", "Content-Type: application/json", "--data", "@test-alert.json",
            f"http://127.0.0.1:{machine.ports['receiver']}/alertmanager",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def test_it_says_where_everything_is(machine: Machine) -> None:
    said = machine.told()
    assert f"POST http://127.0.0.1:{machine.ports['receiver']}/alertmanager" in said
    assert f"http://127.0.0.1:{machine.ports['trigger']}" in said
    assert f"http://127.0.0.1:{machine.ports['mlflow']}" in said
    assert "s3://my-staging-bucket/" in said


def test_a_busy_port_is_refused_by_its_name_and_nothing_is_left_running(machine: Machine, tmp_path: Path) -> None:
    second = Machine(tmp_path)
    done = second.run("up", "--config", str(machine.config))
    assert done.returncode == 69
    for name, port in machine.ports.items():
        assert f"ports.{name}: port {port} is in use" in done.stderr


def test_a_second_one_on_the_same_folder_is_refused(machine: Machine, tmp_path: Path) -> None:
    before = machine.state.addresses.read_text()
    second = Machine(tmp_path)
    done = machine.run("up", "--config", str(second.config))
    assert done.returncode == 69
    assert "runs already" in done.stderr
    assert machine.state.addresses.read_text() == before


class TestTheExampleOfTheDocumentation:
    """Posted by curl as it stands; the tests build on each other."""

    def test_it_trains_on_the_bucket_that_it_names_and_the_first_model_becomes_champion(
        self, machine: Machine, tmp_path: Path
    ) -> None:
        assert curl(machine, tmp_path) == "200"
        record = machine.ended("default")
        assert len(machine.workflows("default")) == 1
        retrain = record.status.retrain
        assert retrain is not None
        assert (retrain.outcome, retrain.dataset_uri) == ("Promoted", "s3://my-staging-bucket/datasets/cifar/v2/")
        assert "no champion yet" in (retrain.explanation or "")
        run = machine.mlflow().get_run(retrain.run_id)
        logged = [entry.dataset.source for entry in run.inputs.dataset_inputs]
        assert any("s3://my-staging-bucket/datasets/cifar/v2/" in source for source in logged)

    def test_again_it_makes_no_second_workflow(self, machine: Machine, tmp_path: Path) -> None:
        for _ in range(2):
            assert curl(machine, tmp_path) == "200"
        assert len(machine.workflows("default")) == 1
        assert machine.record("default").status.history[-1].kind == "Hold"

    def test_from_the_registered_version_one_finds_everything_back_to_the_alert_and_forth(
        self, machine: Machine
    ) -> None:
        client = machine.mlflow()
        version = client.get_model_version_by_alias("default", "champion")
        run = client.get_run(version.run_id)
        [workflow] = machine.workflows("default")
        retrain = machine.record("default").status.retrain
        assert retrain is not None
        # Back: version, run, Workflow, decision, event, alert.
        assert run.data.tags["aegis.workflow"] == version.tags["aegis.workflow"] == workflow["metadata"]["name"]
        assert run.data.tags["aegis.workflow_uid"] == workflow["metadata"]["uid"]
        assert workflow["metadata"]["name"] == retrain.workflow
        notes = workflow["metadata"]["annotations"]
        for told in (run.data.tags, version.tags):
            assert told["aegis.event_id"] == notes["aegis.dev/event-id"] == retrain.event_id != ""
            assert told["aegis.fingerprint"] == notes["aegis.dev/fingerprint"] == retrain.fingerprint
        assert version.tags["aegis.reason"] == run.data.tags["aegis.decision"] == retrain.reason != ""
        # Forth: alert, event, decision, Workflow, run, version, package, pointer.
        [alert] = machine.record("default").status.evidence
        assert (alert.fingerprint, alert.event_id) == (retrain.fingerprint, retrain.event_id)
        rows = [row for row in machine.record("default").status.history if row.kind == "Submitted"]
        assert [row.workflow for row in rows] == [retrain.workflow]
        assert (retrain.run_id, retrain.registered_version) == (version.run_id, str(version.version))
        found = champion(machine, "default")
        assert (found.workflow, found.run_id) == (workflow["metadata"]["uid"], version.run_id)
        assert (found.model_version, found.tar_sha256) == (str(version.version), version.tags["aegis.tar_sha256"])
        said = machine.run("why", "default").stdout
        for link in (retrain.workflow, retrain.run_id, retrain.event_id, retrain.fingerprint):
            assert link
            assert link in said
        assert f"default version {version.version}" in said


class TestTheCommandsBesideIt:
    """What a person does in another shell; the tests build on each other."""

    def test_send_follows_a_retrain_to_its_promotion(self, machine: Machine) -> None:
        uri = machine.dataset("digits", sum_of(digits()))
        done = machine.run("send", "digits", "--dataset", uri, "--severity", "critical", "--wait")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "retrain ended: Promoted" in done.stdout

    def test_a_hold_with_wait_is_a_no(self, machine: Machine) -> None:
        done = machine.run("send", "digits", "--wait", "--json")
        assert done.returncode == 3
        assert as_json(done)["status"]["history"][-1]["reason"] == "Cooldown"

    def test_a_person_passes_the_hold_and_gets_an_honest_answer(self, machine: Machine) -> None:
        done = machine.run("retrain", "digits", "--why", "to see", "--wait")
        assert done.returncode == 3, done.stdout + done.stderr
        assert "Rejected" in done.stdout
        assert "to see" in machine.run("why", "digits").stdout

    def test_models_lists_them(self, machine: Machine) -> None:
        assert "digits" in machine.run("models").stdout
        assert {"digits", "careful"} <= {model["model"] for model in as_json(machine.run("models", "--json"))}

    def test_a_model_that_needs_a_person_waits_for_one(self, machine: Machine) -> None:
        uri = machine.dataset("careful", sum_of(digits()))
        assert machine.run("approve", "careful").returncode == 65
        assert machine.run("send", "careful", "--dataset", uri).returncode == 0

        def asks() -> bool:
            retrain = machine.record("careful").status.retrain
            assert retrain is not None
            assert retrain.in_flight, retrain.explanation
            return retrain.state == "AwaitingApproval"

        until(asks, "careful waits for approval")
        assert machine.run("approve", "careful").returncode == 0
        retrain = machine.ended("careful").status.retrain
        assert retrain is not None
        assert retrain.outcome == "Promoted"

    def test_what_was_promoted_is_verified_extracted_and_adopted_elsewhere(
        self, machine: Machine, tmp_path: Path
    ) -> None:
        folder = machine.state.models / package.folder("default", "digits", champion(machine, "digits").tar_sha256)
        pointer = machine.state.models / "champions/default/digits/pointer.json"
        model = tmp_path / "model"
        done = machine.run("verify", str(folder), "--pointer", str(pointer), "--model", "digits", "--extract",
                           str(model))  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert machine.run("verify", str(folder), "--model", "other").returncode == 76
        done = machine.run("adopt", "digits", str(model), "--environment", "prod")
        assert done.returncode == 0, done.stderr
        assert "serial 1" in done.stdout
        version = machine.mlflow().get_model_version_by_alias("digits", "champion-prod")
        assert version.tags["aegis.environment"] == "prod"

    def test_up_told_all_of_it_as_it_happened(self, machine: Machine) -> None:
        until(lambda: "default/careful  retrain ended: Promoted" in machine.told(), "the last outcome is told")
        assert "default/digits  held: Cooldown" in machine.told()


def test_killed_in_the_middle_it_leaves_nobody_and_goes_on_where_it_was(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    with machine:
        uri = machine.dataset("digits", sum_of(digits()))
        assert machine.run("send", "digits", "--dataset", uri).returncode == 0
        until(lambda: running(machine) == ["train"], "training runs")
        until(lambda: len(below(machine.pid)) > 8, "the trainer has processes of its own")
        children = machine.kill()
        until(lambda: not alive(children), "all that ran below it are gone", within_s=10)
        [before] = machine.workflows("digits")
        assert before["status"]["phase"] == "Running"

        machine.start()
        retrain = machine.ended("digits").status.retrain
        [after] = machine.workflows("digits")
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert retrain is not None
        assert (retrain.outcome, retrain.workflow) == ("Promoted", before["metadata"]["name"])
        assert [run.info.run_id for run in machine.runs("digits")] == [retrain.run_id]
        assert [str(version.version) for version in machine.versions("digits")] == [retrain.registered_version]

        children = below(machine.pid)
        assert len(children) >= 3
        assert machine.interrupt() == 0
        assert alive(children) == set()
        assert machine.told().endswith("Stopping ...\n")


def running(machine: Machine) -> list[str]:
    """Templates of the steps that run now."""
    nodes: list[Any] = [n for doc in machine.workflows() for n in doc.get("status", {}).get("nodes", {}).values()]
    return [node["templateName"] for node in nodes if node["type"] == "Pod" and node["phase"] == "Running"]


def sum_of(parts: tuple[Any, Any, Any]) -> Any:
    return parts[0] + parts[1] + parts[2]


def test_the_example_is_the_documented_one() -> None:
    shown = json.loads((Path(__file__).parents[1] / "receiver" / "example.json").read_text())
    assert json.loads(EXAMPLE) == shown
