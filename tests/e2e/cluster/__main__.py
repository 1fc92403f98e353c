"""The product on the cluster that KUBECONFIG names, with Argo Workflows 4.1.2 or newer: `make e2e`.

It installs an overlay with servers that it needs (a bucket, and MLflow from the overlay), posts what Alertmanager
posts, kills the trigger's pods in the middle, and checks every effect: the ledger, the Workflow, its pods, the
registry, the signature by the stock command. At the end it takes everything away again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import yaml

from aegis import package
from aegis_cli.alerts import payload
from tests.support import free_port, until
from tests.train_model.datasets import cifar_batch, digits

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "e2e"
BIN = Path(sys.executable).parent
BUCKET = "aegis"
IMAGES = ("aegis-receiver", "aegis-trigger", "aegis-train-model", "aegis-sign-model")
STEPS = {"train", "gate", "sign", "promote"}


KNATIVE = "../../../knative/components/knative"
_SERVICE = {"apiVersion": "v1", "kind": "Service", "name": "retrain-trigger"}
_BROKER = "http://broker-ingress.knative-eventing.svc.cluster.local/aegis/default"


def _replaced(**values: Any) -> str:
    return json.dumps([{"op": "replace", "path": path, "value": value} for path, value in values.items()])


EVENTING = [
    {"target": {"kind": "Trigger"},
     "patch": _replaced(**{"/spec/subscriber/ref": _SERVICE, "/spec/delivery/deadLetterSink/ref": _SERVICE})},
    {"target": {"kind": "Broker"}, "patch": _replaced(**{"/spec/delivery/deadLetterSink/ref": _SERVICE})},
    {"target": {"kind": "Deployment", "name": "alert-receiver"},
     "patch": json.dumps([
         {"op": "test", "path": "/spec/template/spec/containers/0/env/3/name", "value": "K_SINK"},
         {"op": "replace", "path": "/spec/template/spec/containers/0/env/3/value", "value": _BROKER}])},
    {"target": {"kind": "ConfigMap", "name": "aegis-steps"}, "patch": _replaced(**{"/data/AEGIS_SINK": _BROKER})},
]  # fmt: skip
"""`plain` with a Broker and the shipped Triggers in between: for a cluster with Knative Eventing but no Serving."""


def told(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


STARTED = time.monotonic()


def check(what: str, holds: object) -> None:
    """One claim of the run; the first that doesn't hold ends it."""
    if not holds:
        raise SystemExit(f"FAILED: {what}")
    told(f"checked: {what}")


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    done = subprocess.run(
        [str(BIN / "kubectl"), *arguments], input=stdin, text=True, capture_output=True, timeout=300, check=False
    )
    if check and done.returncode:
        raise SystemExit(f"kubectl {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.stdout + ("" if check else done.stderr)


def get(kind: str, namespace: str, *more: str) -> Any:
    return json.loads(kubectl("get", kind, "-n", namespace, "-o", "json", *more))


@contextmanager
def forwarded(namespace: str, target: str, port: int) -> Iterator[str]:
    """The URL of a port in the cluster."""
    local = free_port()
    command = [str(BIN / "kubectl"), "-n", namespace, "port-forward", target, f"{local}:{port}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: _accepts(local), f"port-forward to {target}", within_s=60)
            yield f"http://127.0.0.1:{local}"
        finally:
            process.terminate()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Run:
    """One installation of an overlay."""

    def __init__(self, overlay: str, options: argparse.Namespace) -> None:
        self.overlay = overlay
        self.options = options
        self.folder = BUILD / overlay
        self.token = secrets.token_hex(16)
        self.keys = self.folder / "keys"

    def install(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.keys.mkdir(parents=True)
        shutil.copy(HERE / "servers.yaml", self.folder)
        where = self.options.images
        images = [{"name": name, "newName": f"{where}/{name}", "newTag": self.options.tag} for name in IMAGES]
        tools = [
            {"name": name, "newName": f"{where}/aegis-e2e", "newTag": self.options.tag}
            for name in ("ghcr.io/mlflow/mlflow", "aegis-e2e")
        ]
        executor = {"op": "replace", "path": "/spec/variables/1/expression", "value": f"'{self.options.executor}'"}
        volume = {"op": "replace", "path": "/spec/template/spec/volumes/0", "value": {"name": "data", "emptyDir": {}}}
        overlay, resources, patches = self.overlay, ["servers.yaml"], []
        if overlay == "eventing":
            overlay = "plain"
            resources += ["eventing.yaml", *(f"{KNATIVE}/{name}.yaml" for name in ("broker", "triggers", "network"))]
            patches = EVENTING
            shutil.copy(HERE / "eventing.yaml", self.folder)
        (self.folder / "kustomization.yaml").write_text(yaml.safe_dump({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"../../../knative/overlays/{overlay}", *resources],
            "configurations": ["../../../knative/components/images/places.yaml"],
            "images": [*images, *tools],
            "replacements": [{"path": "../../../knative/components/images/signer.yaml"}],
            "patches": [
                # A scratch cluster need not have a class of storage.
                {"target": {"kind": "PersistentVolumeClaim", "name": "mlflow"},
                 "patch": yaml.safe_dump({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                                          "metadata": {"name": "mlflow", "namespace": "aegis"}, "$patch": "delete"})},
                {"target": {"kind": "Deployment", "name": "mlflow"}, "patch": json.dumps([volume])},
                {"target": {"kind": "ValidatingAdmissionPolicy", "name": "aegis-signer"},
                 "patch": json.dumps([executor])},
                *patches,
            ],
        }))  # fmt: skip
        told(f"installing the overlay {self.overlay} ...")
        kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / "knative/base/crd"))
        kubectl("wait", "--for=condition=Established", "crd/managedmodels.aegis.dev", "--timeout=60s")
        kubectl("apply", "--server-side", "-f", str(ROOT / "knative/base/namespaces.yaml"))
        self._secrets()
        self._apply()
        for namespace, kind in (("aegis-e2e", "deployment"), ("aegis", "deployment")):
            for item in get(kind, namespace)["items"]:
                kubectl("rollout", "status", "-n", namespace, f"{kind}/{item['metadata']['name']}", "--timeout=280s")
        if self.overlay != "plain":
            kubectl("wait", "-n", "aegis", "--for=condition=Ready", "broker,trigger", "--all", "--timeout=280s")
        told("receiver, trigger, MLflow and a bucket run")

    def _apply(self) -> None:
        # kubectl kustomize first: files of the repository lie above the overlay's folder.
        made = kubectl("kustomize", "--load-restrictor=LoadRestrictionsNone", str(self.folder))
        kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=made)

    def _secrets(self) -> None:
        """The commands of docs/install.md."""
        (self.keys / "seal-key").write_text(secrets.token_hex(32))
        (self.keys / "alertmanager-token").write_text(self.token)
        key, public = self.keys / "signing-key.pem", self.keys / "signer.pub"
        subprocess.run(
            ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key)],
            check=True, capture_output=True,
        )  # fmt: skip
        subprocess.run(["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(public)], check=True)
        self._secret("aegis", "secret", "aegis-seal", f"--from-file={self.keys / 'seal-key'}")
        token = f"--from-file={self.keys / 'alertmanager-token'}"
        self._secret("aegis", "secret", "aegis-receiver-credentials", token)
        self._secret("aegis-workflows", "secret", "aegis-signing", f"--from-file={key}")
        self._secret("aegis-workflows", "configmap", "aegis-trusted-keys", f"--from-file={public}")
        storage = self.keys / "storage.env"
        storage.write_text(
            "AWS_ACCESS_KEY_ID=e2e\nAWS_SECRET_ACCESS_KEY=e2e-secret\nAWS_DEFAULT_REGION=us-east-1\n"
            "AWS_ENDPOINT_URL=http://s3.aegis-e2e.svc.cluster.local:5000\n"
        )
        self._secret("aegis-workflows", "secret", "aegis-storage", f"--from-env-file={storage}")

    def _secret(self, namespace: str, kind: str, name: str, source: str) -> None:
        words = ["secret", "generic"] if kind == "secret" else ["configmap"]
        made = kubectl("create", *words, name, "-n", namespace, source, "--dry-run=client", "-o", "yaml")
        kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=made)

    # --- the main job ---

    def retrain(self) -> None:
        model = self.options.model
        with forwarded("aegis-e2e", "service/s3", 5000) as url:
            self._put_data(url)
        kubectl("apply", "-f", "-", stdin=yaml.safe_dump({
            "apiVersion": "aegis.dev/v1alpha1", "kind": "ManagedModel",
            "metadata": {"name": f"{model}.default", "namespace": "aegis"},
            "spec": {"environment": "default", "model": model},
        }))  # fmt: skip
        status = until(lambda: self.post(), "the receiver takes the payload", within_s=60)
        check("the receiver took Alertmanager's payload", status == 200)
        workflow = until(self._workflow, "the trigger made a Workflow", within_s=60)
        assert workflow is not None
        told(f"Workflow {workflow}; killing the trigger's pods")
        kubectl(
            "delete", "pod", "-n", "aegis", "-l", "app.kubernetes.io/component=trigger", "--grace-period=0", "--force"
        )
        check("the same payload again is taken", until(lambda: self.post() == 200, "the trigger is back", within_s=120))
        self._follow(workflow)
        check("five deliveries of one drift made one Workflow", self._repeat(3) == [workflow])
        self._check_pods(workflow)
        self._check_chain()

    def _put_data(self, url: str) -> None:
        client = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="e2e", aws_secret_access_key="e2e-secret", region_name="us-east-1"
        )
        client.create_bucket(Bucket=BUCKET)
        if self.options.dataset is not None:
            for file in sorted(self.options.dataset.iterdir()):
                client.put_object(
                    Bucket=BUCKET, Key=f"datasets/{self.options.model}/{file.name}", Body=file.read_bytes()
                )
            return
        for number, part in enumerate(digits(self.options.seed), 1):
            key = f"datasets/{self.options.model}/data_batch_{number}.bin"
            client.put_object(Bucket=BUCKET, Key=key, Body=cifar_batch(part))

    def post(self) -> int:
        """Post the payload to the receiver; the status, 0 when nobody answers."""
        if self.options.payload is not None:
            body = self.options.payload.read_bytes()
        else:
            labels = {"alertname": "ModelDrift", "model_name": self.options.model, "severity": "critical"}
            data = {"dataset_uri": f"s3://{BUCKET}/datasets/{self.options.model}/", "summary": "drift <b>seen</b>"}
            body = json.dumps(payload(labels, data, FIRED)).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        try:
            with forwarded("aegis", "service/alert-receiver", 80) as url:
                request = urllib.request.Request(f"{url}/alertmanager", body, headers)  # noqa: S310 # loopback
                with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                    return int(answer.status)
        except urllib.error.HTTPError as exc:
            told(f"the receiver answers {exc.code}: {exc.read(300)!r}")
            return 0
        except (OSError, AssertionError):
            return 0

    def _model(self) -> dict[str, Any]:
        found: dict[str, Any] = get("managedmodel", "aegis", f"{self.options.model}.default")
        return found

    def _workflow(self) -> str | None:
        return ((self._model().get("status") or {}).get("retrain") or {}).get("workflow")

    def _workflows(self) -> list[str]:
        return sorted(item["metadata"]["name"] for item in get("workflow", "aegis-workflows")["items"])

    def _follow(self, workflow: str) -> None:
        seen: set[str] = set()

        def ended() -> dict[str, Any] | None:
            doc = get("workflow", "aegis-workflows", workflow)
            for node in ((doc.get("status") or {}).get("nodes") or {}).values():
                said = f"{node['displayName']}: {node.get('phase')}"
                if node.get("type") == "Pod" and said not in seen:
                    seen.add(said)
                    told(f"  {said} {node.get('message') or ''}".rstrip())
            retrain: dict[str, Any] = self._model()["status"]["retrain"]
            return retrain if retrain["phase"] == "Finished" else None

        retrain = until(ended, f"{workflow} ended and the ledger knows", within_s=self.options.within)
        assert retrain is not None
        told(f"outcome: {retrain['outcome']}: {retrain.get('explanation')}")
        check("the ledger says Promoted", retrain["outcome"] == "Promoted")
        print(kubectl("get", "mm", "-n", "aegis"))
        events = get("events", "aegis", "--field-selector=involvedObject.kind=ManagedModel")["items"]
        reasons = [event["reason"] for event in events]
        check(f"Kubernetes Events tell the story: {', '.join(reasons)}", {"Drift", "RetrainPromoted"} <= set(reasons))

    def _repeat(self, times: int) -> list[str]:
        for _ in range(times):
            assert self.post() == 200
        return self._workflows()

    def _check_pods(self, workflow: str) -> None:
        nodes = get("workflow", "aegis-workflows", workflow)["status"]["nodes"].values()
        ran = {node["templateName"] for node in nodes if node.get("type") == "Pod" and node["phase"] == "Succeeded"}
        check(f"steps ran in pods: {', '.join(sorted(ran))}", ran >= STEPS)
        namespace = get("namespace", "", "aegis-workflows")["metadata"]["labels"]
        check("under the restricted standard", namespace.get("pod-security.kubernetes.io/enforce") == "restricted")

    def _check_chain(self) -> None:
        """The signed pointer, package and registry, with the stock command."""
        folder = self.folder / "models"
        with forwarded("aegis-e2e", "service/s3", 5000) as url:
            client = boto3.client(
                "s3", endpoint_url=url, aws_access_key_id="e2e", aws_secret_access_key="e2e-secret",
                region_name="us-east-1",
            )  # fmt: skip
            for item in client.list_objects_v2(Bucket=BUCKET, Prefix="models/")["Contents"]:
                target = folder / item["Key"].removeprefix("models/")
                target.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(BUCKET, item["Key"], str(target))
        packages = sorted(folder.glob("packages/*/*/*"))
        check("one package lies in the bucket", len(packages) == 1)
        extracted = self.folder / "extracted"
        pointer = folder / "champions" / "default" / self.options.model / "pointer.json"
        verified = subprocess.run(
            [str(BIN / "aegis"), "verify", str(packages[0]), "--keys", str(self.keys / "signer.pub"), "--pointer",
             str(pointer), "--model", self.options.model, "--extract", str(extracted)],
            text=True, capture_output=True, check=False,
        )  # fmt: skip
        told(verified.stdout.strip() + verified.stderr.strip())
        check("aegis verify accepts the package and its pointer", verified.returncode == 0)
        stock = subprocess.run(
            [str(BIN / "model_signing"), "verify", "key", str(extracted), "--signature",
             str(packages[0] / package.MODEL_SIG), "--public_key", str(self.keys / "signer.pub"),
             "--no-ignore-git-paths"],
            text=True, capture_output=True, check=False,
        )  # fmt: skip
        told((stock.stdout + stock.stderr).strip()[-200:])
        check("the stock model_signing command does too", stock.returncode == 0)
        with forwarded("aegis", "service/mlflow", 5000) as url:
            where = f"{url}/api/2.0/mlflow/registered-models/alias?name={self.options.model}&alias=champion"
            named = {"Host": "mlflow.aegis.svc.cluster.local:5000"}  # it answers under no other name
            with urllib.request.urlopen(urllib.request.Request(where, headers=named), timeout=30) as answer:  # noqa: S310 # loopback
                version = json.load(answer)["model_version"]["version"]
        check(f"MLflow's alias champion names version {version}", version)

    def remove(self) -> None:
        told("taking everything away ...")
        made = kubectl("kustomize", "--load-restrictor=LoadRestrictionsNone", str(self.folder))
        kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=made)
        gone = ("aegis", "aegis-workflows", "aegis-e2e")
        until(lambda: not any(f"namespace/{name}\n" in kubectl("get", "ns", "-o", "name") for name in gone), "gone")


FIRED = datetime.now(UTC) - timedelta(minutes=2)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", default=os.environ.get("IMAGES_AT", "localhost"), help="registry of the images")
    arguments.add_argument("--tag", default="e2e")
    arguments.add_argument("--executor", default="quay.io/argoproj/argoexec", help="Argo's executor image, without tag")
    arguments.add_argument(
        "--overlay",
        action="append",
        help="default: plain; and quickstart where Knative is, or eventing where only Knative Eventing is",
    )
    arguments.add_argument("--model", default="digits")
    arguments.add_argument("--payload", type=Path, help="a webhook body to post instead of our own")
    arguments.add_argument("--dataset", type=Path, help="a folder to train on, put below datasets/<model>/")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--within", type=int, default=900, help="seconds that a retrain may take")
    arguments.add_argument("--keep", action="store_true", help="leave everything in place")
    options = arguments.parse_args()
    kinds = kubectl("api-resources", "-o", "name")
    if not re.search(r"^workflows\.argoproj\.io$", kinds, re.MULTILINE):
        raise SystemExit("this cluster has no Argo Workflows: see docs/install.md")
    eventing, serving = "brokers.eventing.knative.dev" in kinds, "services.serving.knative.dev" in kinds
    knative = ["quickstart"] if eventing and serving else ["eventing"] if eventing else []
    overlays = options.overlay or ["plain", *knative]
    for overlay in overlays:
        run = Run(overlay, options)
        try:
            run.install()
            run.retrain()
        finally:
            if not options.keep:
                run.remove()
    told(f"done: {', '.join(overlays)}" + ("" if knative else " (there is no Knative here)"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
