"""One file an overlay, ready for `kubectl apply`, every image pinned by its digest: `make release`.

    python knative/release.py build/images build/release

The first argument is a file of lines NAME=REPOSITORY@sha256:DIGEST, as docs/install.md makes it when the images are
pushed; the second is where install-<overlay>.yaml are put. Needs kubectl. Exit code 1, with every image that lacks a
digest, if one does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
OVERLAYS = ("quickstart", "production", "plain")
_TAG = re.compile(r"(@.*|:[^/:]*)$")
_LINE = re.compile(r"([a-z0-9-]+)=([^\s@=]+)@(sha256:[0-9a-f]{64})")


def digests(text: str) -> dict[str, tuple[str, str]]:
    """Name -> (repository, digest). Raises ValueError that names every line which is something else."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = {line: _LINE.fullmatch(line) for line in lines}
    wrong = [line for line, match in found.items() if match is None]
    if wrong:
        raise ValueError("not NAME=REPOSITORY@sha256:DIGEST: " + "; ".join(wrong))
    return {match[1]: (match[2], match[3]) for match in found.values() if match}


def build(kubectl: str, overlay: str, pinned: Mapping[str, tuple[str, str]], folder: Path) -> str:
    """The overlay as YAML, with the images of these names (or whose last part is that name) replaced."""
    plain = kustomize(kubectl, HERE / "overlays" / overlay)
    named = {_TAG.sub("", image) for image in images(plain)}
    replaced = [
        {"name": name, "newName": pinned[short][0], "digest": pinned[short][1]}
        for name in sorted(named)
        if (short := name.rpartition("/")[2]) in pinned
    ]
    for name in ("places.yaml", "replacements.yaml"):
        shutil.copy(HERE / "components" / "images" / name, folder)
    document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(HERE / "overlays" / overlay, folder)],
        "configurations": ["places.yaml"],
        "images": replaced,
        "replacements": [{"path": "replacements.yaml"}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(document))
    return kustomize(kubectl, folder)


def kustomize(kubectl: str, folder: Path) -> str:
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)  # noqa: S603  # our own program and folder
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return done.stdout


def images(text: str) -> set[str]:
    """Every image that the documents name."""
    return {image for document in yaml.safe_load_all(text) for image in _images(document)}


def _images(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _images(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name == "image" and isinstance(item, str):
                yield item
            else:
                yield from _images(item)


def main(arguments: list[str]) -> int:
    source, target = (Path(argument) for argument in arguments)
    beside = Path(sys.executable).parent / "kubectl"
    kubectl = str(beside) if beside.exists() else shutil.which("kubectl")
    try:
        if kubectl is None:
            raise ValueError("kubectl is not installed")
        pinned = digests(source.read_text()) if source.exists() else {}
        made = {}
        for overlay in OVERLAYS:
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target) as folder:
                made[overlay] = build(kubectl, overlay, pinned, Path(folder).resolve())
        missing = sorted({i for text in made.values() for i in images(text) if "@sha256:" not in i})
        if missing:
            raise ValueError(f"no digest in {source} for {', '.join(missing)}: add NAME=REPOSITORY@sha256:DIGEST")
    except ValueError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    for overlay, text in made.items():
        file = target / f"install-{overlay}.yaml"
        file.write_text(f"# Aegis, overlay {overlay}. docs/install.md says what it needs.\n{text}")
        print(f"{file}: {text.count(chr(10) + '---' + chr(10)) + 1} objects")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
