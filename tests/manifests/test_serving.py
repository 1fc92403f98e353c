"""The examples of servers whose model is verified first: taken by a real API server, and run as they are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from aegis import manifest, signature
from aegis.errors import OK, VERIFICATION_FAILED
from aegis.storage import open_store
from sign_model import keys
from sign_model.adopt import adopt
from sign_model.chain import Chain
from tests.cluster.control_plane import ControlPlane
from tests.manifests.conftest import HERE, Api
from tests.manifests.overlays import KNATIVE, Json
from tests.signing.world import NOW
from tests.storage import servers

EXAMPLES = KNATIVE / "examples"
DEPLOYMENT, KSERVE = EXAMPLES / "serve-deployment.yaml", EXAMPLES / "serve-kserve.yaml"
VALIDATION, PATCH = EXAMPLES / "serve-model-validation.yaml", EXAMPLES / "serve-model-validation.patch.yaml"
NAMESPACE = "serving"


def read(path: Path) -> Json:
    found: Json = yaml.safe_load(path.read_text())
    return found


def pod_spec(path: Path) -> Json:
    spec = read(path)["spec"]
    if path == KSERVE:  # KServe's predictor is a pod's spec with fields of its own
        return {name: value for name, value in spec["predictor"].items() if name != "minReplicas"}
    found: Json = spec["template"]["spec"]
    return found


def init_container(path: Path) -> Json:
    (found,) = pod_spec(path)["initContainers"]
    return dict(found)


# --- what a cluster says ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def restricted(plane: ControlPlane) -> Api:
    """The API server, with a namespace that enforces the Pod Security level `restricted`."""
    plane.kubectl("apply", "--server-side", "-f", str(HERE / "serving-crds.yaml"))
    plane.kubectl("wait", "--for=condition=Established", "crd/modelvalidations.ml.sigstore.dev", "--timeout=60s")
    plane.kubectl("create", "namespace", NAMESPACE)
    plane.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    plane.kubectl("-n", NAMESPACE, "create", "serviceaccount", "default")
    return Api(plane)


STRICT = "?dryRun=All&fieldValidation=Strict"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods{STRICT}"


def pod(path: Path) -> Json:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod_spec(path)}


@pytest.mark.parametrize("path", [DEPLOYMENT, KSERVE], ids=lambda path: path.name)
def test_its_pods_run_where_only_restricted_ones_may(path: Path, restricted: Api) -> None:
    status, answer = restricted("POST", PODS, pod(path))
    assert status == 201, answer
    lax = pod(path)
    lax["spec"]["initContainers"] = [{**init_container(path), "securityContext": {}}]
    status, answer = restricted("POST", PODS, lax)
    assert (status, "restricted" in answer["message"]) == (403, True)


def test_the_api_server_takes_the_deployment_and_the_validation(restricted: Api) -> None:
    status, answer = restricted("POST", f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments{STRICT}", read(DEPLOYMENT))
    assert status == 201, answer
    path = f"/apis/ml.sigstore.dev/v1alpha1/namespaces/{NAMESPACE}/modelvalidations{STRICT}"
    status, answer = restricted("POST", path, read(VALIDATION))
    assert status == 201, answer


def test_the_patch_makes_the_operator_see_what_it_needs(kubectl: str) -> None:
    command = [kubectl, "patch", "--local", "-f", str(DEPLOYMENT), "--patch-file", str(PATCH), "-o", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    template = json.loads(done.stdout)["spec"]["template"]
    assert template["metadata"]["labels"]["validation.ml.sigstore.dev/ml"] == read(VALIDATION)["metadata"]["name"]
    (server,) = template["spec"]["containers"]
    # The operator's init container gets the mounts of the pod's own containers.
    mounts = [mount["mountPath"] for mount in server["volumeMounts"]]
    spec = read(VALIDATION)["spec"]
    for place in (spec["config"]["publicKeyConfig"]["keyPath"], *spec["model"].values()):
        assert any(place.startswith(mount + "/") for mount in mounts), place


def test_both_examples_ask_the_same_and_the_server_cannot_change_the_model() -> None:
    assert init_container(DEPLOYMENT) == init_container(KSERVE)
    for path in (DEPLOYMENT, KSERVE):
        volumes = {volume["name"]: volume for volume in pod_spec(path)["volumes"]}
        (server,) = pod_spec(path)["containers"]
        assert "emptyDir" in volumes["models"]
        assert {"name": "models", "mountPath": "/models", "readOnly": True} in server["volumeMounts"]


# --- what it does -------------------------------------------------------------------------------------------------


class NoRegistry:
    """Nothing is looked up in a registry here."""

    def register(self, *_: object) -> str:
        return "1"

    def versions(self, _: str) -> Mapping[str, Mapping[str, str]]:
        return {}

    def tag(self, *_: object) -> None:
        pass

    def aliased(self, *_: object) -> str:
        return ""

    def alias(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def bucket() -> Iterator[Mapping[str, str]]:
    """The environment that reaches the bucket of the examples."""
    with servers.s3("aegis") as reached:
        yield reached


class Machine:
    """What stands for the pod: its mounts below a folder, its init container as a process."""

    def __init__(self, root: Path, bucket: Mapping[str, str]) -> None:
        self.root, self.bucket = root, bucket
        self.signer = keys.ensure(root / "keys" / "signing.pem")
        for mount in ("models", "aegis/trusted"):
            (root / mount).mkdir(parents=True)
        (root / "aegis" / "trusted" / "signer.pub").write_bytes(self.signer.public_pem())

    def here(self, value: str) -> str:
        return f"{self.root}{value}" if value.startswith(("/models", "/aegis")) else value

    def promote(self, text: str, dataset: str = "s3://aegis/datasets/churn/new.csv") -> None:
        env = {each["name"]: each["value"] for each in init_container(DEPLOYMENT)["env"]}
        directory = self.root / text
        directory.mkdir()
        (directory / "MLmodel").write_text(f"flavors: {{}}  # {text}\n")
        (directory / "model.skops").write_bytes(b"weights")
        trusted = signature.trust([self.signer.public_pem()])
        done = adopt(
            directory, env["AEGIS_ENVIRONMENT"], env["AEGIS_MODEL"],
            Chain(
                store=open_store(env["AEGIS_MODELS_URI"], env=self.bucket), models_uri=env["AEGIS_MODELS_URI"],
                signer=self.signer, trusted=trusted, models=NoRegistry(), now=NOW, scratch=self.root,
            ),
            dataset_uri=dataset,
        )  # fmt: skip
        assert done.outcome == "Promoted"

    def init(self, path: Path, **more: str) -> subprocess.CompletedProcess[str]:
        container = init_container(path)
        env = {each["name"]: self.here(each["value"]) for each in container["env"]}
        command = [sys.executable if word == "python" else word for word in container["command"]]
        env = {"PATH": os.environ["PATH"], **env, **self.bucket, **more}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def machine(bucket: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A champion in the examples' bucket."""
    made = Machine(tmp_path_factory.mktemp("machine"), bucket)
    made.promote("first")
    return made


@pytest.mark.parametrize("path", [DEPLOYMENT, KSERVE], ids=lambda path: path.name)
def test_its_init_container_puts_the_model_where_the_server_looks(path: Path, machine: Machine) -> None:
    done = machine.init(path)
    assert done.returncode == OK, done.stderr
    (server,) = pod_spec(path)["containers"]
    place = Path(machine.here(server["args"][-1]))
    assert manifest.walk(place) == manifest.walk(machine.root / "first")


def test_sigstore_s_operator_would_run_this_and_it_passes(machine: Machine) -> None:
    assert machine.init(DEPLOYMENT).returncode == OK
    spec = read(VALIDATION)["spec"]
    model, key = spec["model"], spec["config"]["publicKeyConfig"]["keyPath"]
    command = [str(Path(sys.executable).with_name("model_signing")), "verify", "key"]
    command += [f"--signature={machine.here(model['signaturePath'])}", "--public_key", machine.here(key)]
    done = subprocess.run([*command, machine.here(model["path"])], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"AEGIS_MIN_SERIAL": "7"}, "serial 1 is older than 7"),
        ({"AEGIS_REQUIRED_DATASET_PREFIXES": "s3://aegis/other/"}, "dataset s3://aegis/datasets/churn/new.csv"),
        ({"AEGIS_ALLOWED_KINDS": ".json"}, "model.skops"),
        ({"AEGIS_ENVIRONMENT": "staging"}, "no champion"),
    ],
)
def test_a_model_that_the_example_refuses_leaves_the_server_nothing(
    more: dict[str, str], message: str, machine: Machine
) -> None:
    assert machine.init(DEPLOYMENT).returncode == OK
    done = machine.init(DEPLOYMENT, **more)
    assert (done.returncode, message in done.stderr) == (VERIFICATION_FAILED, True), done.stderr
    assert [*(machine.root / "models").iterdir()] == []
