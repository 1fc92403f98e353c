"""What `make bundle` stages, and each func.yaml, against what func takes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conformance.hosts import NAMES, ROOT

functions = pytest.mark.parametrize("package", NAMES)

SHAPE: dict[str, Any] = {
    "specVersion": str,
    "name": re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"),
    "namespace": str,
    "runtime": re.compile("python"),
    "created": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
    "invoke": re.compile("http|cloudevent"),
    "build": {"builder": re.compile("pack|s2i")},
    "run": {
        "envs": [{"name": re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*"), "value": str}],
        "volumes": [{"secret": re.compile("[a-z0-9-]+"), "configMap": re.compile("[a-z0-9-]+"), "path": str}],
    },
    "deploy": {
        "serviceAccountName": str,
        "labels": [
            {"key": re.compile(r"([a-z0-9.-]+/)?[a-z-]*[a-z]"), "value": re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]*")}
        ],
        "healthEndpoints": {"liveness": str, "readiness": str},
        "options": {
            "scale": {"min": int, "max": int},
            "resources": {
                "requests": {"cpu": re.compile(r"[0-9]+m?"), "memory": re.compile(r"[0-9]+Mi")},
                "limits": {"cpu": re.compile(r"[0-9]+m?"), "memory": re.compile(r"[0-9]+Mi"), "concurrency": int},
            },
        },
    },
}
"""The part of func's format that is used here: func refuses any other field, and any value of another kind. func's
names of Secrets may hold no dot."""


class AsWritten(yaml.SafeLoader):
    """YAML with times left as text, as func reads them."""


AsWritten.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: str(node.value))


def faults(value: Any, shape: Any, at: str = "") -> list[str]:
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{at}: not a mapping"]
        return [
            f for k, v in value.items() for f in (faults(v, shape[k], f"{at}.{k}") if k in shape else [f"{at}.{k}"])
        ]
    if isinstance(shape, list):
        return [fault for index, each in enumerate(value) for fault in faults(each, shape[0], f"{at}[{index}]")]
    if isinstance(shape, re.Pattern):
        return [] if isinstance(value, str) and shape.fullmatch(value) else [f"{at}: {value!r}"]
    return [] if type(value) is shape else [f"{at}: {value!r}"]


@functions
def test_func_yaml_has_the_shape_that_func_takes(package: str) -> None:
    func = yaml.load((ROOT / "functions" / package / "func.yaml").read_text(), AsWritten)  # noqa: S506  # a safe one
    assert faults(func, SHAPE) == []
    assert func["name"] == NAMES[package]
    assert func["invoke"] == "http"  # the other flavour decodes events before us
    assert func["deploy"]["serviceAccountName"] == NAMES[package]
    assert {"key": "networking.knative.dev/visibility", "value": "cluster-local"} in func["deploy"]["labels"]
    for env in func["run"]["envs"]:
        assert "name" in env or re.fullmatch(r"\{\{ (secret|configMap):[a-z0-9-]+ \}\}", env["value"])
    paths = [Path(volume["path"]) for volume in func["run"]["volumes"]]
    assert len(set(paths)) == len(paths)
    # The first is read-only, so nothing can make the folder that the second needs in it.
    assert not any(one in other.parents for one in paths for other in paths)
    assert all(("secret" in volume) != ("configMap" in volume) for volume in func["run"]["volumes"])


@functions
def test_func_yaml_says_what_the_manifests_say(package: str) -> None:
    func = yaml.safe_load((ROOT / "functions" / package / "func.yaml").read_text())
    manifests = yaml.safe_load_all((ROOT / "knative" / "components" / "knative" / "services.yaml").read_text())
    (service,) = [each for each in manifests if each["metadata"]["name"] == NAMES[package]]
    template = service["spec"]["template"]
    (container,) = template["spec"]["containers"]
    options = func["deploy"]["options"]
    assert (func["namespace"], service["kind"]) == (service["metadata"]["namespace"], "Service")
    assert func["deploy"]["serviceAccountName"] == template["spec"]["serviceAccountName"]
    assert options["resources"]["limits"].pop("concurrency") == template["spec"]["containerConcurrency"]
    assert options["resources"] == container["resources"]
    assert {f"autoscaling.knative.dev/{k}-scale": str(v) for k, v in options["scale"].items()} == {
        k: v for k, v in template["metadata"]["annotations"].items() if k.startswith("autoscaling")
    }
    own = {env["name"]: env["value"] for env in container.get("env", ()) if env["name"] != "AEGIS_CONFIG"}
    assert own == {e["name"]: e["value"] for e in func["run"]["envs"] if e.get("name") not in (None, "AEGIS_CONFIG")}
    secrets = {volume["path"] for volume in func["run"]["volumes"] if "secret" in volume}
    assert secrets == {m["mountPath"] for m in container["volumeMounts"] if m["name"] in ("seal", "credentials")}


@functions
def test_a_bundle_holds_copies_of_all_that_it_needs(bundles: Path, package: str) -> None:
    bundle = bundles / NAMES[package]
    assert {path.name for path in bundle.iterdir()} == {
        "LICENSE", "aegis", "func.yaml", "function", package, "pyproject.toml"
    }  # fmt: skip
    assert not [path for path in bundle.rglob("*") if path.is_symlink() or path.name == "__pycache__"]
    for name in ("aegis", package):
        for copy in (bundle / name).rglob("*.py"):
            source = ROOT / ("shared" if name == "aegis" else "functions") / name / copy.relative_to(bundle / name)
            assert copy.read_bytes() == source.read_bytes()
    assert "def new()" in (bundle / "function" / "__init__.py").read_text()
    project = tomllib.loads((bundle / "pyproject.toml").read_text())
    assert project["project"]["name"] == "function"  # by this name func's scaffolding depends on it
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["aegis", "function", package]


@functions
def test_a_bundle_pins_every_dependency_to_what_the_tests_run(bundles: Path, package: str) -> None:
    found = tomllib.loads((bundles / NAMES[package] / "pyproject.toml").read_text())["project"]["dependencies"]
    tested = set(re.findall(r"^[a-z0-9.-]+==[^ ;\\]+", (ROOT / "requirements" / "func.txt").read_text(), re.MULTILINE))
    assert {re.split(r"[ ;]", pin)[0] for pin in found} <= tested
    assert "func-python==0.8.1" in found
    assert any(pin.startswith("kubernetes==") for pin in found) == (package == "retrain_trigger")


def test_staging_again_changes_nothing_and_leaves_nothing_behind(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "alert-receiver").mkdir()
    (tmp_path / "alert-receiver" / "left over").touch()
    subprocess.run([sys.executable, str(ROOT / "functions" / "bundle.py"), str(tmp_path)], check=True)
    assert tree(tmp_path) == tree(bundles)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
