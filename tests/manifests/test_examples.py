"""The examples: read by the programs that they are for, and understood by ours."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from aegis import events
from aegis.settings import duration
from retrain_trigger.model import Policy, object_name
from tests.conftest import needs
from tests.manifests.conftest import Api
from tests.manifests.overlays import KNATIVE, ROOT, built, step_pod, workflow_template
from tests.receiver.world import World, alert, payload

EXAMPLES = KNATIVE / "examples"
GUIDE = (ROOT / "docs" / "install.md").read_text()


def read(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / name).read_text())


def test_alertmanager_takes_its_configuration() -> None:
    amtool = needs("amtool", "prometheus-alertmanager")
    done = subprocess.run([amtool, "check-config", str(EXAMPLES / "alertmanager.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_alertmanager_posts_to_the_receiver_all_of_it_and_often_enough() -> None:
    config = read("alertmanager.yaml")
    (route,) = config["route"]["routes"]
    (hook,) = next(r for r in config["receivers"] if r["name"] == route["receiver"])["webhook_configs"]
    assert hook["url"] == "http://alert-receiver.aegis.svc.cluster.local/alertmanager"
    assert (hook["max_alerts"], hook["send_resolved"]) == (0, True)
    assert duration(route["repeat_interval"]) < Policy().evidence_ttl


def test_prometheus_takes_the_rule(tmp_path: Path) -> None:
    promtool = needs("promtool", "prometheus")
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(read("prometheus-rule.yaml")["spec"]))
    done = subprocess.run([promtool, "check", "rules", str(rules)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_alert_is_one_that_the_receiver_understands() -> None:
    (rule,) = read("prometheus-rule.yaml")["spec"]["groups"][0]["rules"]
    found = re.search(r"by \(([^)]*)\)", rule["expr"])
    assert found
    labels = {name.strip(): f"{name.strip()}-1" for name in found[1].split(",")}

    def filled(text: str) -> str:
        return re.sub(r"{{ \$labels\.(\w+) }}", lambda tag: labels[tag[1]], text).replace("{{ $value }}", "0.3")

    annotations = {name: filled(text) for name, text in rule["annotations"].items()}
    made = alert(labels={"alertname": rule["alert"], **labels, **rule["labels"]}, annotations=annotations)
    world = World()
    assert world.post(payload(made)).status == 200
    (event,) = world.sink.events
    drift = events.from_cloudevent(event)
    assert (drift.model, drift.version, drift.environment) == ("model_name-1", "model_version-1", "environment-1")
    assert drift.feature == "feature-1"
    assert drift.dataset_uri == "s3://aegis/datasets/model_name-1/latest.csv"
    assert drift.score == 0.3


def test_the_guide_s_alert_is_understood_too() -> None:
    found = re.search(r"-d '(\{.*?\]\})'", GUIDE, re.DOTALL)
    assert found
    text = re.sub(r"'\$\(date [^)]*\)'", "2026-01-01T11:00:00Z", found[1])
    world = World()
    assert world.post(json.dumps(json.loads(text)).encode()).status == 200
    drift = events.from_cloudevent(world.sink.events[0])
    example = read("managed-model.yaml")
    assert (drift.environment, drift.model) == (example["spec"]["environment"], example["spec"]["model"])
    assert example["metadata"]["name"] == object_name(drift.environment, drift.model)


def test_the_api_server_takes_the_example_s_model(installed: Api) -> None:
    path = "/apis/aegis.dev/v1alpha1/namespaces/aegis/managedmodels?dryRun=All"
    status, answer = installed("POST", path, read("managed-model.yaml"))
    assert status == 201, answer


def test_the_api_server_takes_the_pod_with_a_trainer_s_own_container(installed: Api, kubectl: str) -> None:
    pod = step_pod(workflow_template(built(kubectl, "../examples/trainer-container")), "train")
    assert pod["spec"]["initContainers"][2]["image"] == "registry.example/churn-trainer:1"
    status, answer = installed("POST", "/api/v1/namespaces/aegis-workflows/pods?dryRun=All", pod)
    assert status == 201, answer


def test_the_guide_names_every_secret_as_the_manifests_mount_it() -> None:
    config = yaml.safe_load((KNATIVE / "base" / "argo" / "config.yaml").read_text().partition("---")[0])["data"]
    assert f"--from-file={config['AEGIS_SIGNING_KEY'].rpartition('/')[2]}" in GUIDE
    for secret, file in (("aegis-seal", "seal-key"), ("aegis-receiver-credentials", "alertmanager-token")):
        assert re.search(rf"create secret generic {secret} (\\\n +)?--from-file={file}=/dev/stdin", GUIDE)
    assert "create configmap aegis-trusted-keys --from-file=signer.pub" in GUIDE  # *.pub: what the steps look for
