"""The check before a model serves: the owner's policy, and the init container that puts the model in its place."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aegis import manifest, package, pointer, signature
from aegis.errors import OK, TRANSIENT, USAGE, VERIFICATION_FAILED
from aegis.signature import IN_TOTO
from aegis.storage import open_store
from sign_model import keys
from sign_model.sign import sign
from sign_model.verify import ANY, Policy, main, verify_directory
from tests.signing.tampering import champion
from tests.signing.world import World, process_env
from tests.storage import servers
from tests.support import free_port


def env(world: World, **more: str) -> dict[str, str]:
    """The init container's own environment."""
    return {
        "AEGIS_MODELS_URI": world.uri,
        "AEGIS_TRUSTED_KEYS": str(world.trusted_dir),
        "AEGIS_MODEL": world.model,
        "AEGIS_ENVIRONMENT": world.environment,
        "AEGIS_TARGET": str(world.root / "serve" / "model"),
        "AEGIS_OUT": str(world.root / "out"),
        **more,
    }


def target(world: World) -> Path:
    return world.root / "serve" / "model"


def nothing_serves(world: World) -> bool:
    """Neither a model nor a part of one is where the server looks."""
    folder = world.root / "serve"
    return not folder.exists() or not [*folder.iterdir()]


def rewritten(world: World, name: str, change: Callable[[Any], object]) -> None:
    """A statement of the champion's package, altered and signed again by the trusted key."""
    (folder,) = world.root.glob("models/packages/*/*/*")
    statement, _ = signature.verify_json((folder / name).read_bytes(), IN_TOTO, world.trusted)
    change(statement)
    (folder / name).write_bytes(signature.sign_json(statement, IN_TOTO, world.signer))


# --- the init container -------------------------------------------------------------------------------------------


def test_the_champion_is_put_where_the_server_looks_with_its_signature_beside_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = champion(world)
    assert main(env(world)) == OK
    found = manifest.root_digest(manifest.walk(target(world)))
    assert found == json.loads((folder / package.RESULT).read_bytes())["root_digest"]
    assert target(world).with_name("model.sig").read_bytes() == (folder / package.MODEL_SIG).read_bytes()
    assert folder.name in capsys.readouterr().out
    command: list[str | Path] = [Path(sys.executable).with_name("model_signing"), "verify", "key", target(world)]
    command += ["--signature", target(world).with_name("model.sig"), "--public_key", folder / "signer.pub"]
    subprocess.run([*command, "--no-ignore-git-paths"], check=True, capture_output=True, timeout=60)


def test_a_pinned_package_serves_whatever_the_pointer_names(world: World) -> None:
    first = champion(world)
    champion(world, "better")
    assert main(env(world, AEGIS_PACKAGE=first.name)) == OK
    assert (target(world) / "data" / "weights.bin").read_bytes().startswith(b"weights")
    assert main(env(world, AEGIS_PACKAGE="00" * 32)) == VERIFICATION_FAILED
    assert nothing_serves(world)


def test_a_process_of_its_own_needs_no_mlflow(world: World) -> None:
    champion(world)
    code = "import sys; from sign_model.verify import main; code = main(); assert 'mlflow' not in sys.modules; "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(code)"],
        env=process_env({**env(world), "AEGIS_TMP": str(world.scratch)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == OK, done.stderr
    assert target(world).is_dir()


def test_what_an_earlier_run_left_is_replaced_and_what_is_not_ours_is_not(world: World) -> None:
    champion(world)
    assert main(env(world)) == OK
    left = target(world).with_name(".aegis-model")
    (left / ".fetch.killed").mkdir()
    (left / "model.tar").touch()
    champion(world, "better")
    assert main(env(world)) == OK
    assert (target(world) / "data" / "weights.bin").read_bytes().startswith(b"better")
    assert sorted(path.name for path in target(world).parent.iterdir()) == [".aegis-model", "model", "model.sig"]
    assert [*left.iterdir()] == []
    other = world.root / "home"
    (other / "letters").mkdir(parents=True)
    assert main(env(world, AEGIS_TARGET=str(other))) == USAGE
    assert "not empty" in world.output("failure")
    assert [*other.iterdir()] == [other / "letters"]
    (world.root / "link").symlink_to(other)
    assert main(env(world, AEGIS_TARGET=str(world.root / "link"))) == USAGE
    assert [*other.iterdir()] == [other / "letters"]


def test_a_model_refused_now_does_not_serve_because_it_was_accepted_before(world: World) -> None:
    champion(world)
    assert main(env(world)) == OK
    for path in world.trusted_dir.iterdir():
        path.unlink()
    keys.ensure(world.root / "keys" / "next.pem", world.trusted_dir)
    assert main(env(world)) == VERIFICATION_FAILED
    assert nothing_serves(world)


def pickled(world: World, name: str) -> None:
    model = world.make_model("pickled")
    (model / name).write_bytes(pickle.dumps([1]))
    origin = world.origin()
    signed = sign(
        model,
        package.Origin(**{**{f: getattr(origin, f) for f in origin.__dataclass_fields__}, "allow_pickle": True}),
        None,
        store=world.store,
        signer=world.signer,
        trusted=world.trusted,
        scratch=world.scratch,
    )
    made = pointer.Pointer(
        *(world.model, world.environment, 1, signed.tar_sha256, signed.root_digest, "", "", "1", "uid-1", "")
    )
    world.pointer_file().parent.mkdir(parents=True, exist_ok=True)
    world.pointer_file().write_bytes(pointer.seal(made, world.signer))


def flipped(world: World, name: str) -> None:
    (folder,) = world.root.glob("models/packages/*/*/*")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)


def sources(*uris: str) -> Callable[[World], object]:
    def change(statement: Any) -> None:
        built = statement["predicate"]["buildDefinition"]
        built["externalParameters"]["sources"] = [*uris]
        built["resolvedDependencies"] = []

    return lambda world: rewritten(world, package.PROVENANCE, change)


def dependency(world: World) -> None:
    def change(statement: Any) -> None:
        entry = {"name": "dataset", "uri": "s3://others/x", "digest": {"sha256": "ab" * 32}}
        statement["predicate"]["buildDefinition"]["resolvedDependencies"].append(entry)

    rewritten(world, package.PROVENANCE, change)


def gone(world: World) -> None:
    world.pointer_file().unlink()


PREFIX = {"AEGIS_REQUIRED_DATASET_PREFIXES": "s3://ours/, file:///data"}
REFUSED: dict[str, tuple[Callable[[World], object], dict[str, str], str]] = {
    "an older pointer": (lambda _: None, {"AEGIS_MIN_SERIAL": "2"}, "serial 1 is older than 2"),
    "another model": (lambda _: None, {"AEGIS_MODEL": "letters"}, "letters has no champion"),
    "another environment": (lambda _: None, {"AEGIS_ENVIRONMENT": "staging"}, "staging/digits has no champion"),
    "no pointer": (gone, {}, "no champion"),
    "a dataset beside the prefix": (sources("file:///database/x"), PREFIX, "dataset file:///database/x"),
    "one dataset of two": (sources("file:///data/x", "s3://theirs/x"), PREFIX, "dataset s3://theirs/x"),
    "a dataset that climbs": (sources("file:///data/../x"), PREFIX, "dataset file:///data/../x"),
    "a dataset among the dependencies": (dependency, PREFIX, "dataset s3://others/x"),
    "no dataset at all": (sources(), PREFIX, "names no dataset"),
    "a kind that is not listed": (lambda _: None, {"AEGIS_ALLOWED_KINDS": ".json,MLmodel,.txt"}, "data/weights.bin"),
    "a name that is not listed": (lambda _: None, {"AEGIS_ALLOWED_KINDS": ".json,.bin,.txt"}, "MLmodel"),
    "a pickle by its name": (lambda w: pickled(w, "one.pkl"), {}, "one.pkl: pickle family by its name"),
    "a pickle by its content": (lambda w: pickled(w, "two.bin"), {}, "two.bin: pickle by its content"),
    "a pickle of a listed kind": (
        lambda w: pickled(w, "one.pkl"),
        {"AEGIS_ALLOWED_KINDS": ".json,.bin,.txt,.pkl,MLmodel"},
        "one.pkl: pickle family by its name",
    ),
    "a byte of the archive": (lambda w: flipped(w, package.TAR), {}, "not the signed one"),
    "a byte of the signature": (lambda w: flipped(w, package.MODEL_SIG), {}, "model.sig"),
    "a byte of the provenance": (lambda w: flipped(w, package.PROVENANCE), {}, "provenance"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_policy_refuses_does_not_serve_and_the_finding_says_why(what: str, world: World) -> None:
    spoil, more, message = REFUSED[what]
    if "pickle" not in what:
        champion(world)
    spoil(world)
    assert main(env(world, **more)) == VERIFICATION_FAILED
    assert message in world.output("failure")
    assert nothing_serves(world)


def test_what_the_statements_tell_is_refused_before_the_archive_is_fetched(world: World) -> None:
    pickled(world, "one.pkl")
    (folder,) = world.root.glob("models/packages/*/*/*")
    (folder / package.TAR).unlink()
    assert main(env(world)) == VERIFICATION_FAILED
    assert "one.pkl: pickle family by its name" in world.output("failure")
    assert package.TAR not in world.output("failure")
    assert main(env(world, AEGIS_ALLOW_PICKLE="true")) == VERIFICATION_FAILED
    assert f"{package.TAR}: is missing" in world.output("failure")


def test_every_fault_is_named_at_once(world: World) -> None:
    champion(world)
    more = {"AEGIS_MIN_SERIAL": "9", "AEGIS_REQUIRED_DATASET_PREFIXES": "gs://other/", "AEGIS_ALLOWED_KINDS": ".json"}
    assert main(env(world, **more)) == VERIFICATION_FAILED
    said = world.output("failure")
    for part in ("serial 1 is older than 9", "dataset file:///data/new", "MLmodel", "data.txt", "data/weights.bin"):
        assert part in said
    flipped(world, package.TAR_SIG)
    assert main(env(world, **more)) == VERIFICATION_FAILED
    assert "serial 1" in world.output("failure")
    assert package.TAR_SIG in world.output("failure")


def test_what_the_policy_allows_serves(world: World) -> None:
    pickled(world, "one.pkl")
    kinds = ".json, .bin, .txt, .pkl, MLmodel"
    assert main(env(world, **PREFIX, AEGIS_ALLOWED_KINDS=kinds, AEGIS_ALLOW_PICKLE="true", AEGIS_MIN_SERIAL="1")) == OK
    assert (target(world) / "one.pkl").exists()


SETTINGS: dict[str, str] = {
    "AEGIS_MODEL": "../x",
    "AEGIS_ENVIRONMENT": "",
    "AEGIS_MODELS_URI": "",
    "AEGIS_TRUSTED_KEYS": "",
    "AEGIS_TARGET": "model",
    "AEGIS_MIN_SERIAL": "-1",
    "AEGIS_PACKAGE": "../../x",
    "AEGIS_REQUIRED_DATASET_PREFIXES": "s3://ours/,http://x/",
    "AEGIS_ALLOWED_KINDS": ".json,*",
}


def test_settings_that_are_wrong_are_all_named(world: World) -> None:
    champion(world)
    assert main(env(world, **SETTINGS)) == USAGE
    assert [name for name in SETTINGS if name not in world.output("failure")] == []
    assert main(env(world, AEGIS_PACKAGE="00" * 32, AEGIS_MIN_SERIAL="1")) == USAGE
    for uri in ("ftp://x", "file://host/x"):
        assert main(env(world, AEGIS_MODELS_URI=uri)) == USAGE
    assert main(env(world, AEGIS_TRUSTED_KEYS=str(world.root / "nowhere"))) == USAGE
    for place in ("/", "/proc/aegis/model", "/a/../b"):
        assert main(env(world, AEGIS_TARGET=place)) in {USAGE, TRANSIENT}
    assert main({}) == USAGE


def test_a_store_that_is_away_is_tried_again_and_leaves_nothing(world: World) -> None:
    away = {"STORAGE_EMULATOR_HOST": "", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    away |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "hunter2-hunter2"}
    assert main(env(world, AEGIS_MODELS_URI="s3://models/x", **away)) == TRANSIENT
    assert "hunter2" not in world.output("failure")
    assert nothing_serves(world)


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The URI of a bucket, and the environment that reaches it."""
    with (servers.gcs if request.param == "gs" else servers.s3)("models") as reached:
        yield f"{request.param}://models/aegis", reached


def test_a_champion_in_a_bucket_serves(world: World, bucket: tuple[str, Mapping[str, str]]) -> None:
    uri, reached = bucket
    folder = champion(world)
    store, root = open_store(uri, env=reached), world.root / "models"
    for path in (*folder.iterdir(), world.pointer_file()):
        store.create(str(path.relative_to(root)), path)
    assert main(env(world, AEGIS_MODELS_URI=uri, **reached)) == OK
    assert manifest.walk(target(world)) == manifest.walk(world.root / "model-weights")
    assert main(env(world, AEGIS_MODELS_URI=uri, AEGIS_MIN_SERIAL="2", **reached)) == VERIFICATION_FAILED
    assert nothing_serves(world)


# --- a package in a folder ----------------------------------------------------------------------------------------


def test_a_folder_is_held_to_the_same_policy_and_every_fault_is_listed(world: World) -> None:
    pickled(world, "two.bin")
    (folder,) = world.root.glob("models/packages/*/*/*")
    policy = Policy(("gs://other/",), frozenset({".json", ".bin"}))
    faults = verify_directory(folder, world.trusted, min_serial=1, policy=policy, target=world.root / "x")
    assert {fault.partition(": ")[0] for fault in faults} == {
        *("pointer", "dataset file:///data/new", "MLmodel", "data.txt", "two.bin")
    }
    assert not (world.root / "x").exists()
    assert verify_directory(folder, world.trusted, policy=ANY) == ["two.bin: pickle by its content"]
    allowed = Policy(allow_pickle=True)
    assert verify_directory(folder, world.trusted, policy=allowed, target=world.root / "x") == []
    assert (world.root / "x" / "two.bin").exists()


def test_an_archive_with_a_pickle_is_looked_into(world: World) -> None:
    model = world.make_model()
    with zipfile.ZipFile(model / "net.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n")
    held = manifest.pickles(model)
    assert held == {"net.npz": "an archive with a pickle"}


def test_a_check_that_is_taken_away_lets_the_model_through(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What refuses above is the check that is named, and not something else."""
    pickled(world, "two.bin")
    monkeypatch.setattr(manifest, "pickles", lambda _: {})
    assert main(env(world)) == OK
    more = {"AEGIS_REQUIRED_DATASET_PREFIXES": "gs://other/", "AEGIS_ALLOWED_KINDS": ".json"}
    assert main(env(world, **more)) == VERIFICATION_FAILED
    monkeypatch.setattr(Policy, "faults", lambda *_: {})
    assert main(env(world, **more)) == OK


def test_the_pointer_that_is_told_is_the_one_that_is_signed(world: World) -> None:
    champion(world)
    found = world.pointer()
    assert found is not None
    for change in ({"root_digest": "00" * 32}, {"tar_sha256": "00" * 32}, {"model": "letters"}):
        changed = pointer.Pointer(**{**asdict(found), **change})
        world.pointer_file().write_bytes(pointer.seal(changed, world.signer))
        assert main(env(world)) == VERIFICATION_FAILED
        assert nothing_serves(world)


def test_files_can_be_read_by_another_user_than_the_one_that_verified(world: World) -> None:
    champion(world)
    assert main(env(world)) == OK
    for path in (target(world), *target(world).rglob("*")):
        assert path.stat().st_mode & 0o055 == (0o055 if path.is_dir() else 0o044), path
    assert os.access(target(world), os.R_OK)
