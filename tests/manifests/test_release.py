"""`make release`: one file an overlay, every image by its digest, or a word about what is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from tests.manifests.overlays import OVERLAYS, ROOT, admitted, built, key, workflow_template

NAMES = ("aegis-receiver", "aegis-trigger", "aegis-train-model", "aegis-sign-model", "mlflow")
PLACES = {name: f"registry.example:5000/team/{name}" for name in NAMES[:4]} | {"mlflow": "ghcr.io/mlflow/mlflow"}
LINES = [f"{name}={PLACES[name]}@sha256:{str(n) * 64}" for n, name in enumerate(NAMES)]


def release(folder: Path, lines: list[str]) -> subprocess.CompletedProcess[str]:
    (folder / "images").write_text("\n".join(["# pushed today", *lines, ""]))
    command = [sys.executable, str(ROOT / "knative" / "release.py"), str(folder / "images"), str(folder / "out")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_every_image_is_pinned_and_nothing_else_changes(tmp_path: Path, kubectl: str) -> None:
    done = release(tmp_path, LINES)
    assert done.returncode == 0, done.stderr
    for overlay in OVERLAYS:
        text = (tmp_path / "out" / f"install-{overlay}.yaml").read_text()
        documents = tuple(yaml.safe_load_all(text))
        assert [key(d) for d in documents] == [key(d) for d in built(kubectl, overlay)]
        used = set(re.findall(r"^ *-? ?image: (\S+)$", text, re.MULTILINE))
        assert used <= {line.partition("=")[2] for line in LINES}
        signer = LINES[3].partition("=")[2]
        assert admitted(documents) == {"image": signer, "executor": "quay.io/argoproj/argoexec"}
        texts = (text.partition("\n")[2].replace(f"'{signer}'", "'aegis-sign-model:0.1.0'"), _built(kubectl, overlay))
        template = workflow_template(documents)
        steps = {step["name"]: step.get("container") or {} for step in template["spec"]["templates"]}
        for step in ("train", "gate", "sign"):
            (told,) = [e["value"] for e in steps[step]["env"] if e["name"] == "AEGIS_TRAINER_IMAGE"]
            assert told == steps["train"]["image"] == LINES[2].partition("=")[2]
        unpinned = [re.sub(r"image: \S+|(?<=AEGIS_TRAINER_IMAGE\n)\s+value: \S+", "", t) for t in texts]
        assert unpinned[0] == unpinned[1]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f"install-{o}.yaml" for o in OVERLAYS)


def _built(kubectl: str, overlay: str) -> str:
    command = [kubectl, "kustomize", str(ROOT / "knative" / "overlays" / overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("missing", [[3], [4], range(5)])
def test_images_without_a_digest_are_named(tmp_path: Path, missing: Iterable[int]) -> None:
    done = release(tmp_path, [line for n, line in enumerate(LINES) if n not in missing])
    assert done.returncode == 1
    assert {n for n, name in enumerate(NAMES) if re.search(rf"\b{name}:", done.stderr)} == set(missing)
    assert not list((tmp_path / "out").glob("install-*"))


@pytest.mark.parametrize(
    "line", ["aegis-trigger=registry.example/x:0.1.0", "aegis-trigger=r@sha256:12", "aegis-trigger", "= @sha256:"]
)
def test_a_line_that_pins_nothing_is_refused(tmp_path: Path, line: str) -> None:
    done = release(tmp_path, [*LINES, line])
    assert done.returncode == 1
    assert f"not NAME=REPOSITORY@sha256:DIGEST: {line}" in done.stderr
