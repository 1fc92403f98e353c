"""A person's own sign step, in shell: what the documented contract asks for is enough, and promote verifies it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from aegis import manifest, package
from aegis.errors import BAD_DATA, OK, SIGNING_DENIED, USAGE, VERIFICATION_FAILED, Permanent
from sign_model.registry import MlflowRegistry
from sign_model.verify import verify_directory
from tests.signing.world import World, process_env

SCRIPT = Path(__file__).parents[2] / "knative/examples/package-and-sign.sh"


def own(world: World, model: Path, **more: str) -> subprocess.CompletedProcess[str]:
    given = {"AEGIS_DIGEST": manifest.root_digest(manifest.walk(model)), "AEGIS_MODEL_DIR": str(model), **more}
    env = process_env(world.env(**given))
    return subprocess.run([str(SCRIPT)], env=env, capture_output=True, text=True, check=False)


def test_what_a_shell_script_signed_is_verified_and_promoted_like_ours(world: World, models: MlflowRegistry) -> None:
    model = world.make_model()
    (model / "data" / "a file.json").write_text("{}")
    done = own(world, model)
    assert (done.returncode, done.stderr) == (OK, "")
    tar = world.output("package")
    ours = world.signed(model)  # the very archive, so what the script published is kept
    assert ours.tar_sha256 == tar
    assert ours.workflow_uid == "uid-1"
    assert (ours.external["event_id"], ours.external["fingerprint"]) == ("event-1", "f00d")
    assert verify_directory(world.folder(tar), world.trusted, model="digits", environment="default") == []
    assert world.promoted(tar, models).outcome == "Promoted"
    assert own(world, model).returncode == OK, "again"


def test_its_exit_codes_are_those_of_a_step(world: World) -> None:
    model = world.make_model()
    replaced = own(world, model, AEGIS_DIGEST="ab" * 32)
    assert (replaced.returncode, "judged" in replaced.stderr) == (VERIFICATION_FAILED, True)
    assert own(world, model, AEGIS_SIGNING_KEY="file:///nowhere").returncode == SIGNING_DENIED
    assert own(world, model, AEGIS_MODEL="a/../b").returncode == USAGE
    (model / "weights.pkl").touch()
    assert own(world, model).returncode == BAD_DATA
    assert not (world.root / "models" / "packages").exists()


def test_a_package_of_its_own_that_was_altered_is_not_promoted(world: World, models: MlflowRegistry) -> None:
    assert own(world, world.make_model()).returncode == OK
    tar = world.output("package")
    file = world.folder(tar) / package.PROVENANCE
    file.chmod(0o600)
    file.write_bytes(file.read_bytes().replace(b'"sig":"M', b'"sig":"N'))
    with pytest.raises(Permanent, match="refused"):
        world.promoted(tar, models)
    assert world.pointer() is None
