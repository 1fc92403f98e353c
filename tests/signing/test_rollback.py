"""Rolling back and signing again: the pointer only moves forward, and nothing serves that does not verify."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from aegis import manifest, package, pointer, signature
from aegis.errors import BAD_DATA, OK, SIGNING_DENIED, USAGE, VERIFICATION_FAILED, Conflict, NotFound, Permanent
from aegis.signature import IN_TOTO, Keys, Untrusted
from aegis.storage import Store
from sign_model import keys
from sign_model.promote import PROMOTED, STALE, Promotion
from sign_model.registry import MlflowRegistry
from sign_model.resign import main as resign_main
from sign_model.resign import resign
from sign_model.rollback import main as rollback_main
from sign_model.rollback import rollback
from sign_model.verify import verify_directory
from tests.signing.world import Fuse, World, dies_everywhere, process_env

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_name(world: World, request: pytest.FixtureRequest) -> None:
    """MLflow outlives a test: each uses a model name of its own."""
    world.model = f"r{abs(hash(request.node.nodeid)) % 10**9}"


def promoted(world: World, models: MlflowRegistry, *texts: str) -> list[str]:
    """One champion after the other; their tar digests."""
    tars = [""]
    for text in texts:
        signed = world.signed(world.make_model(text, text), f"uid-{text}")
        world.promoted(signed.tar_sha256, models, tars[-1], f"uid-{text}")
        tars.append(signed.tar_sha256)
    return tars[1:]


def back(world: World, models: MlflowRegistry, to: str = "previous", store: Store | None = None) -> Promotion:
    return rollback(world.environment, world.model, to, world.chain(models, store))


def again(
    world: World, models: MlflowRegistry, believed: Keys | None = None, wanted: str = "", store: Store | None = None
) -> Promotion:
    chain = world.chain(models, store)
    return resign(world.environment, world.model, chain, believed=believed or {}, only=wanted)


def alias(world: World, models: MlflowRegistry, name: str = "champion") -> str:
    return str(models._client.get_model_version_by_alias(world.model, name).version)


def count(world: World, models: MlflowRegistry) -> int:
    return len(models.versions(world.model))


def serving(world: World) -> pointer.Pointer:
    """The pointer, once its package was fetched and verified as a gate or a server would."""
    found = pointer.fetch_champion(
        world.store, world.trusted, world.environment, world.model, Path(_fresh(world)) / "champion"
    )
    assert found is not None
    return found.pointer


def _fresh(world: World) -> Path:
    place = world.root / "fetched" / str(len([*world.root.glob("fetched/*")]))
    place.mkdir(parents=True)
    return place


def flip(path: Path) -> None:
    """One byte in the middle; again: as it was."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class Meanwhile:
    """A store in which somebody else moves the pointer just before one of our calls."""

    def __init__(self, world: World, call: str) -> None:
        self.world, self.call = world, call
        self.signer = keys.load(f"file://{world.root}/keys/signing.pem")

    def __getattr__(self, name: str) -> Any:
        if name == self.call:
            trusted = signature.trust([self.signer.public_pem()])
            found = pointer.unseal(self.world.pointer_file().read_bytes(), trusted)
            self.world.pointer_file().write_bytes(pointer.seal(replace(found, serial=9), self.signer))
        return getattr(self.world.store, name)


# --- on a cluster ---


def template_env(world: World, step: str, server: str, **parameters: str) -> dict[str, str]:
    """The environment that the WorkflowTemplate gives a step, its ConfigMap filled with this world's settings."""
    document = yaml.safe_load((ROOT / "knative/base/argo/champion-template.yaml").read_text())
    given = {p["name"]: p.get("value") for p in document["spec"]["arguments"]["parameters"]}
    given |= {"model": world.model, "environment": world.environment, **parameters}
    config = {**world.env(), "MLFLOW_TRACKING_URI": server}
    (container,) = (t["container"] for t in document["spec"]["templates"] if t["name"] == step)
    env = {}
    for entry in container["env"]:
        if "valueFrom" in entry:
            env[entry["name"]] = config.get(entry["valueFrom"]["configMapKeyRef"]["key"], "")
        else:
            env[entry["name"]] = re.sub(r"{{workflow\.parameters\.(\w+)}}", lambda m: given[m[1]], entry["value"])
    return {**env, **{name: config[name] for name in ("AEGIS_OUT", "AEGIS_TMP")}}


def test_the_cluster_s_template_rolls_back_and_signs_again(world: World, database: str, models: MlflowRegistry) -> None:
    first, _ = promoted(world, models, "a", "b")
    assert rollback_main(template_env(world, "rollback", database)) == OK
    assert serving(world).tar_sha256 == first
    assert rollback_main(template_env(world, "rollback", database, to="7")) == BAD_DATA
    world.trusted_dir.rename(world.root / "believed")
    (world.root / "keys" / "signing.pem").unlink()
    world.signer = keys.ensure(world.root / "keys" / "signing.pem", world.trusted_dir)
    assert resign_main(template_env(world, "resign", database)) == VERIFICATION_FAILED
    believed = str(world.root / "believed")
    assert resign_main(template_env(world, "resign", database, believed=believed, package=first)) == OK
    assert (serving(world).tar_sha256, serving(world).serial) == (first, 4)


# --- rollback -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["previous", "version", "digest"])
def test_an_older_model_serves_again_under_a_newer_serial(how: str, world: World, models: MlflowRegistry) -> None:
    first, _ = promoted(world, models, "a", "b")
    done = back(world, models, {"previous": "previous", "version": "1", "digest": first}[how])
    assert (done.outcome, done.serial, done.version) == (PROMOTED, 3, "1")
    now = serving(world)
    assert (now.serial, now.tar_sha256, now.model_version, now.workflow) == (3, first, "1", "uid-a")
    assert (alias(world, models), count(world, models)) == ("1", 2)
    folder = world.folder(first)
    assert verify_directory(folder, world.trusted, pointer_file=world.pointer_file(), min_serial=3) == []


def test_two_in_a_row_end_where_they_began_and_a_name_goes_further(world: World, models: MlflowRegistry) -> None:
    first, _, third = promoted(world, models, "a", "b", "c")
    assert (back(world, models).version, back(world, models).version) == ("2", "3")
    assert serving(world).tar_sha256 == third
    assert (back(world, models, "1").serial, serving(world).tar_sha256) == (6, first)


def test_what_is_the_champion_already_stays_and_gets_its_alias_back(world: World, models: MlflowRegistry) -> None:
    _, second = promoted(world, models, "a", "b")
    before = world.pointer_file().read_bytes()
    models.alias(world.model, "champion", "1")
    assert back(world, models, second).serial == 2
    assert world.pointer_file().read_bytes() == before
    assert alias(world, models) == "2"


def test_the_next_retrain_is_compared_with_the_model_that_serves(world: World, models: MlflowRegistry) -> None:
    first, second = promoted(world, models, "a", "b")
    back(world, models)
    third = world.signed(world.make_model("c", "c"), "uid-c").tar_sha256
    assert world.promoted(third, models, second, "uid-c").outcome == STALE
    assert world.promoted(third, models, first, "uid-c").serial == 4


def test_a_promotion_that_argo_repeats_does_not_undo_a_rollback(world: World, models: MlflowRegistry) -> None:
    """The champion's bytes are again those that it was compared with; the serial says that somebody decided since."""
    first, second = promoted(world, models, "a", "b")
    back(world, models)
    again = world.promoted(second, models, f"{first}@1", "uid-b")
    assert again.outcome == STALE
    assert "(serial 3) now" in again.explanation
    assert (serving(world).tar_sha256, alias(world, models)) == (first, "1")


def test_only_what_verifies_comes_back(world: World, models: MlflowRegistry) -> None:
    first, second = promoted(world, models, "a", "b")
    before = world.pointer_file().read_bytes()
    flip(world.folder(first) / package.TAR)
    with pytest.raises(Permanent) as caught:
        back(world, models)
    assert caught.value.exit_code == VERIFICATION_FAILED
    flip(world.folder(first) / package.TAR)
    flip(world.folder(first) / package.PROVENANCE)
    with pytest.raises(Untrusted):
        back(world, models)
    assert world.pointer_file().read_bytes() == before
    assert (serving(world).tar_sha256, alias(world, models)) == (second, "2")


def test_what_is_not_there_is_said(world: World, models: MlflowRegistry) -> None:
    with pytest.raises(NotFound, match="no champion to roll back from"):
        back(world, models)
    promoted(world, models, "a")
    for to, message in (
        ("previous", "no champion of default before this one"),
        ("7", "no version 7 was promoted for default; the registry has: 1"),
        ("../x", "no version ../x"),
        ("00" * 32, "no complete package"),
    ):
        with pytest.raises(NotFound, match=message):
            back(world, models, to)


def test_the_registry_names_a_package_and_cannot_make_it_good(world: World, models: MlflowRegistry) -> None:
    promoted(world, models, "a", "b")
    models.tag(world.model, "1", {"aegis.tar_sha256": "00" * 32})
    with pytest.raises(NotFound, match="no complete package"):
        back(world, models)
    models.tag(world.model, "1", {"aegis.tar_sha256": "../../x"})
    with pytest.raises(NotFound, match="does not say which package"):
        back(world, models, "1")
    models.tag(world.model, "1", {"aegis.environment": "staging"})
    with pytest.raises(NotFound, match="no version 1 was promoted for default"):
        back(world, models, "1")


def test_whoever_moves_the_pointer_meanwhile_wins(world: World, models: MlflowRegistry) -> None:
    first, second = promoted(world, models, "a", "b")

    assert back(world, models, first, Meanwhile(world, "swap")).outcome == STALE
    assert (serving(world).serial, serving(world).tar_sha256) == (9, second)


def test_a_death_at_any_call_of_a_rollback_leaves_a_champion_and_is_finished_once(
    world: World, models: MlflowRegistry
) -> None:
    number, base, client = 0, world.model, models._client
    first = second = ""

    def run(fuse: Fuse) -> None:
        nonlocal number, first, second
        number += 1
        world.model = f"{base}-{number}"
        first, second = promoted(world, models, f"a{number}", f"b{number}")
        models._client = fuse.around(client)
        try:
            back(world, models, first, fuse.around(world.store))
        finally:
            models._client = client

    def check(death: str) -> None:
        assert serving(world).tar_sha256 in {first, second}, death
        assert back(world, models, first).serial == 3, death
        assert (serving(world).tar_sha256, alias(world, models), count(world, models)) == (first, "1", 2), death

    assert "swap" in dies_everywhere(run, check)


# --- signing again ------------------------------------------------------------------------------------------------


def revoke(world: World) -> Keys:
    """The key in use is trusted no more, another one is; the old public key."""
    old = world.trusted
    for path in world.trusted_dir.iterdir():
        path.unlink()
    world.signer = keys.ensure(world.root / "keys" / f"next{len(old)}.pem", world.trusted_dir)
    return old


def statements(folder: Path, trusted: Keys) -> list[dict[str, Any]]:
    return [
        signature.verify_json((folder / name).read_bytes(), IN_TOTO, trusted)[0]
        for name in (package.MODEL_SIG, package.PROVENANCE)
    ]


def resigned_folder(world: World, tar: str) -> Path:
    (hint,) = world.trusted
    return world.root / "models" / package.folder(world.environment, world.model, tar, hint)


def test_what_a_revoked_key_signed_is_refused_at_once_and_signed_again_by_one_act(
    world: World, models: MlflowRegistry
) -> None:
    (tar,) = promoted(world, models, "a")
    before = {path.name: path.read_bytes() for path in world.folder(tar).iterdir()}
    old = revoke(world)
    with pytest.raises(Untrusted):
        serving(world)
    with pytest.raises(Untrusted):  # not without a word for the old key
        again(world, models)
    done = again(world, models, old)
    assert (done.serial, done.version, alias(world, models)) == (2, "1", "1")
    now, folder = serving(world), resigned_folder(world, tar)
    assert (now.serial, now.tar_sha256, now.package) == (2, tar, folder.as_uri())
    assert statements(folder, world.trusted) == statements(world.folder(tar), old)
    assert verify_directory(folder, world.trusted, model=world.model, pointer_file=world.pointer_file()) == []
    result = json.loads((folder / package.RESULT).read_bytes())
    assert result["signed_before_by"] in old
    assert {path.name: path.read_bytes() for path in world.folder(tar).iterdir()} == before
    assert verify_directory(world.folder(tar), {**old}) == []  # who trusts the old key still may


def test_signing_again_twice_is_signing_once(world: World, models: MlflowRegistry) -> None:
    (tar,) = promoted(world, models, "a")
    old = revoke(world)
    first = again(world, models, old)
    before = {path: path.read_bytes() for path in world.root.rglob("models/**/*") if path.is_file()}
    assert again(world, models, old) == first
    assert again(world, models) == first
    assert {path: path.read_bytes() for path in world.root.rglob("models/**/*") if path.is_file()} == before
    assert serving(world).tar_sha256 == tar


def test_with_both_keys_trusted_readers_of_either_can_follow(world: World, models: MlflowRegistry) -> None:
    (tar,) = promoted(world, models, "a")
    old = world.trusted
    world.signer = keys.ensure(world.root / "keys" / "second.pem", world.trusted_dir)
    assert again(world, models).serial == 2
    assert serving(world).serial == 2
    for path in world.trusted_dir.iterdir():
        if signature.hint(signature.parse_public(path.read_bytes())) in old:
            path.unlink()
    assert serving(world).tar_sha256 == tar


def test_the_life_goes_on_after_a_revoked_key(world: World, models: MlflowRegistry) -> None:
    first, second = promoted(world, models, "a", "b")
    old = revoke(world)
    again(world, models, old)
    third = world.signed(world.make_model("c", "c"), "uid-c").tar_sha256
    assert world.promoted(third, models, second, "uid-c").serial == 4
    assert back(world, models).serial == 5
    assert serving(world).tar_sha256 == second
    with pytest.raises(Untrusted):  # the first was not signed again
        back(world, models, first)
    # The same bytes trained once more: what the revoked key left in their folder is not in the way.
    assert world.signed(world.root / "a", "uid-a").tar_sha256 == first
    assert back(world, models, first).serial == 6
    assert serving(world).tar_sha256 == first


def test_only_what_verifies_under_the_old_key_is_signed(world: World, models: MlflowRegistry) -> None:
    (tar,) = promoted(world, models, "a")
    old = revoke(world)
    for name in (package.TAR, package.MODEL_SIG, package.TAR_SIG, package.PROVENANCE):
        flip(world.folder(tar) / name)
        with pytest.raises(Permanent) as caught:
            again(world, models, old)
        assert caught.value.exit_code == VERIFICATION_FAILED, name
        flip(world.folder(tar) / name)
    assert not resigned_folder(world, tar).exists()
    again(world, models, old)


def test_a_pointer_that_a_stolen_key_moved_is_refused_by_naming_the_champion(
    world: World, models: MlflowRegistry
) -> None:
    first, _ = promoted(world, models, "a", "b")
    old = revoke(world)
    with pytest.raises(Untrusted, match=f"wanted {first}"):
        again(world, models, old, wanted=first)
    assert not [*world.root.glob("models/packages/*/*/*.*")]


def test_a_pointer_with_another_root_digest_signs_nothing(world: World, models: MlflowRegistry) -> None:
    (tar,) = promoted(world, models, "a")
    found = world.pointer()
    assert found is not None
    world.pointer_file().write_bytes(pointer.seal(replace(found, root_digest="00" * 32), world.signer))
    old = revoke(world)
    with pytest.raises(Untrusted, match="root_digest"):
        again(world, models, old)
    assert not resigned_folder(world, tar).exists()


def test_a_key_that_nobody_trusts_signs_nothing(world: World, models: MlflowRegistry) -> None:
    promoted(world, models, "a")
    world.signer = keys.ensure(world.root / "keys" / "stranger.pem")
    with pytest.raises(Permanent) as caught:
        again(world, models)
    assert caught.value.exit_code == SIGNING_DENIED
    world.model = "other"
    world.signer = keys.ensure(world.root / "keys" / "signing.pem")
    with pytest.raises(NotFound, match="no champion to sign"):
        again(world, models)


@pytest.mark.parametrize("call", ["download", "swap"])
def test_a_pointer_that_moved_meanwhile_is_not_overwritten(call: str, world: World, models: MlflowRegistry) -> None:
    promoted(world, models, "a")
    old = revoke(world)
    with pytest.raises(Conflict):
        again(world, models, old, store=Meanwhile(world, call))
    assert pointer.unseal(world.pointer_file().read_bytes(), old).serial == 9


def test_a_death_at_any_call_leaves_no_moment_without_a_good_champion(world: World, models: MlflowRegistry) -> None:
    number, base, client = 0, world.model, models._client
    tar, old = "", world.trusted

    def run(fuse: Fuse) -> None:
        nonlocal number, tar
        number += 1
        world.model = f"{base}-{number}"
        world.signer = keys.ensure(world.root / "keys" / "signing.pem", world.trusted_dir)
        (tar,) = promoted(world, models, f"a{number}")
        world.signer = keys.ensure(world.root / "keys" / "second.pem", world.trusted_dir)
        models._client = fuse.around(client)
        try:
            again(world, models, store=fuse.around(world.store))
        finally:
            models._client = client

    def check(death: str) -> None:
        # Who trusts both keys is served at every moment.
        assert serving(world).tar_sha256 == tar, death
        assert again(world, models).serial == 2, death
        new = {hint: key for hint, key in world.trusted.items() if hint not in old}
        held = package.fetch(world.store, new, world.environment, world.model, tar, _fresh(world) / "m")
        assert pointer.read(world.store, new, world.environment, world.model) is not None, death
        assert (held.tar_sha256, alias(world, models)) == (tar, "1"), death

    names = dies_everywhere(run, check)
    assert {"swap", "create", "download"} <= set(names)
    assert not [*world.scratch.iterdir()]


def test_the_processes_do_it_with_a_step_s_settings(world: World, server: str) -> None:
    models = MlflowRegistry(server)
    first, second = promoted(world, models, "a", "b")
    env = world.env(MLFLOW_TRACKING_URI=server)
    env = {name: value for name, value in env.items() if not name.startswith(("AEGIS_WORKFLOW", "AEGIS_EVENT"))}

    def run(module: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"sign_model.{module}"]
        env_ = process_env({**env, **more})
        return subprocess.run(command, env=env_, capture_output=True, text=True, timeout=120, check=False)

    done = run("rollback")
    assert (done.returncode, serving(world).tar_sha256) == (OK, first), done.stderr
    assert "pointer serial 3" in done.stdout
    assert run("rollback", AEGIS_TO="2").returncode == OK
    assert run("rollback", AEGIS_TO="9").returncode == BAD_DATA
    (world.root / "old.pub").write_bytes(world.signer.public_pem())
    revoke(world)
    key = {"AEGIS_SIGNING_KEY": world.signer.uri, "AEGIS_BELIEVED_KEYS": str(world.root / "old.pub")}
    assert run("resign", AEGIS_SIGNING_KEY=world.signer.uri).returncode == VERIFICATION_FAILED
    assert run("resign", **key, AEGIS_PACKAGE=first).returncode == VERIFICATION_FAILED
    assert run("resign", **key, AEGIS_PACKAGE="x").returncode == USAGE
    done = run("resign", **key, AEGIS_PACKAGE=second)
    assert (done.returncode, serving(world).serial) == (OK, 5), done.stderr
    assert alias(world, models) == "2"


def test_a_real_server_follows(world: World, server: str) -> None:
    models = MlflowRegistry(server)
    promoted(world, models, "a", "b")
    assert back(world, models).version == "1"
    assert again(world, models, revoke(world)).serial == 4
    assert MlflowClient(server).get_model_version_by_alias(world.model, "champion").version in {1, "1"}
    assert manifest.walk(world.root / "a")
