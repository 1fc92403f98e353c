"""The stock tools, as a person would run them: `model_signing` from PyPI, and cosign, built from a pinned module."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from aegis import manifest
from aegis.package import MODEL_SIG, PROVENANCE, SIGNER, TAR, TAR_SIG, Package
from tests.go_tools import build

MODEL_SIGNING = Path(sys.executable).with_name("model_signing")
MODULE = Path(__file__).parents[1] / "cosign"
MODEL_TYPE = "https://model_signing/signature/v1.0"
Done = subprocess.CompletedProcess[str]


def model_signing(model: Path, folder: Path, key: Path | None = None, ignore: Path | None = None) -> Done:
    """Verify a model directory against a package's model.sig, with its signer.pub or another key."""
    command: list[str | Path] = [MODEL_SIGNING, "verify", "key", model, "--signature", folder / MODEL_SIG]
    command += ["--public_key", key or folder / SIGNER, "--no-ignore-git-paths"]
    command += ["--ignore-paths", ignore] if ignore else []
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class Cosign:
    """cosign in an empty home and without a network, so that it can know nothing but what it is told."""

    def __init__(self, go: str, home: Path) -> None:
        self._binary = build(go, MODULE, "github.com/sigstore/cosign/v3/cmd/cosign", "-s -w", "cosign")
        self._home = home

    def run(self, *arguments: str | Path, cwd: Path | None = None, **env: str) -> Done:
        own = {"PATH": os.environ["PATH"], "HOME": str(self._home), "HTTPS_PROXY": "http://127.0.0.1:9", **env}
        command = [self._binary, *arguments]
        return subprocess.run(command, env=own, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)

    def tar(self, folder: Path, key: Path | None = None) -> Done:
        """The archive against its signature."""
        bundle: list[str | Path] = ["--bundle", folder / TAR_SIG, "--insecure-ignore-tlog", folder / TAR]
        return self.run("verify-blob", "--key", key or folder / SIGNER, *bundle)

    def attestation(self, bundle: Path, kind: str, digest: str, key: Path) -> Done:
        """A statement about what has this digest."""
        wanted: list[str | Path] = ["--bundle", bundle, "--insecure-ignore-tlog", "--type", kind, "--digest", digest]
        return self.run("verify-blob-attestation", "--key", key, *wanted, "--digestAlg", "sha256")


def verdicts(cosign: Cosign, model: Path, folder: Path, key: Path | None = None) -> dict[str, Done]:
    """What the tools say of every signed file of a package, and of the model that it became."""
    root, tar = manifest.root_digest(manifest.walk(model)), folder.name
    public = key or folder / SIGNER
    return {
        "the model": model_signing(model, folder, key),
        "the archive": cosign.tar(folder, key),
        "provenance of the archive": cosign.attestation(folder / PROVENANCE, "slsaprovenance1", tar, public),
        "provenance of the model": cosign.attestation(folder / PROVENANCE, "slsaprovenance1", root, public),
        "model.sig": cosign.attestation(folder / MODEL_SIG, MODEL_TYPE, root, public),
    }


def agree(cosign: Cosign, model: Path, folder: Path, signed: Package) -> None:
    """Every tool accepts everything, and it is about what was signed."""
    assert (folder.name, manifest.root_digest(manifest.walk(model))) == (signed.tar_sha256, signed.root_digest)
    said = verdicts(cosign, model, folder)
    assert {name: done.stderr + done.stdout for name, done in said.items() if done.returncode} == {}
