"""The sign step: only what the gate judged, create-only, complete after any death, and silent about secrets."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aegis import manifest, package, signature
from aegis.errors import BAD_DATA, OK, SIGNING_DENIED, USAGE, VERIFICATION_FAILED, NotFound, Permanent
from sign_model import keys
from sign_model.sign import main
from sign_model.verify import verify_directory
from tests.signing.world import Fuse, World, dies_everywhere, encoded, process_env


def env(world: World, model: Path, **more: str) -> dict[str, str]:
    digest = manifest.root_digest(manifest.walk(model))
    wanted = {"AEGIS_MODEL_DIR": str(model), "AEGIS_DIGEST": digest, "AEGIS_RUN_ID": "run-1", "AEGIS_INPUTS": "cd" * 32}
    return world.env(**wanted, **more)


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_model_becomes_a_package_that_verifies_and_tells_its_story(world: World) -> None:
    image = f"registry.example/trainer:1@sha256:{'ef' * 32}"
    assert main({**env(world, world.make_model()), "AEGIS_TRAINER_IMAGE": image}) == OK
    folder = world.folder(world.output("package"))
    assert verify_directory(folder, world.trusted, model="digits", environment="default") == []
    held = package.read(world.store, world.trusted, "default", "digits", folder.name)
    assert held.external == {
        "model": "digits",
        "environment": "default",
        "event_id": "event-1",
        "fingerprint": "f00d",
        "dataset_uri": "file:///data/new",
        "sources": ["file:///data/new"],
    }
    assert held.internal == {
        "run_id": "run-1",
        "seed": 7,
        "retrain": 3,
        "decision": "Drifting",
        "inputs": "cd" * 32,
        "pickle_allowed": False,
        "observed": {
            "dataset_uri": "parameter of the Workflow",
            "decision": "drift event that the Workflow carries",
            "environment": "parameter of the Workflow",
            "event_id": "drift event that the Workflow carries",
            "fingerprint": "drift event that the Workflow carries",
            "inputs": "output of the training step",
            "invocationId": "Workflow",
            "model": "parameter of the Workflow",
            "pickle_allowed": "setting of the signer",
            "retrain": "drift event that the Workflow carries",
            "run_id": "output of the training step",
            "seed": "parameter of the Workflow",
            "sources": "aegis_dataset.json of the training step, among the signed files",
            "trainer": "WorkflowTemplate",
        },
    }
    assert held.workflow_uid == "uid-1"
    statement, _ = signature.verify_json((folder / package.PROVENANCE).read_bytes(), signature.IN_TOTO, world.trusted)
    dataset = {"name": "dataset", "uri": "file:///data/new", "digest": {"sha256": "ab" * 32}}
    trainer = {"name": "trainer", "uri": image, "digest": {"sha256": "ef" * 32}}
    assert statement["predicate"]["buildDefinition"]["resolvedDependencies"] == [dataset, trainer]


def test_where_steps_are_processes_no_image_is_said_to_have_trained(world: World) -> None:
    assert main({**env(world, world.make_model()), "AEGIS_TRAINER_IMAGE": "aegis-train-model"}) == OK
    held = package.read(world.store, world.trusted, "default", "digits", world.output("package"))
    assert "trainer" not in held.internal["observed"]


def test_signing_again_keeps_every_byte_that_is_there(world: World) -> None:
    settings = env(world, world.make_model())
    assert main(settings) == OK
    before = everything(world.root / "models")
    assert main({**settings, "AEGIS_WORKFLOW_UID": "uid-2"}) == OK
    assert everything(world.root / "models") == before


def test_a_model_replaced_between_gate_and_sign_is_refused_and_nothing_is_written(world: World) -> None:
    model = world.make_model()
    settings = env(world, model)
    (model / "MLmodel").write_text("flavors: {evil: {}}\n")
    assert main(settings) == VERIFICATION_FAILED
    assert "not the model that the gate judged" in world.output("failure")
    assert everything(world.root / "models") == {}


def test_a_death_at_any_call_leaves_what_the_next_run_completes(world: World) -> None:
    number = 0

    def run(fuse: Fuse) -> None:
        nonlocal number
        number += 1
        world.make_model(f"model-{number}", f"weights {number}")
        world.signed(world.root / f"model-{number}", store=fuse.around(world.store))

    def check(death: str) -> None:
        signed = world.signed(world.root / f"model-{number}")
        assert verify_directory(world.folder(signed.tar_sha256), world.trusted) == [], death

    names = dies_everywhere(run, check)
    assert names.count("create") == 2 * 6
    assert not [*world.scratch.iterdir()]


def test_until_the_commit_mark_there_is_no_package(world: World) -> None:
    folder = world.folder(world.signed(world.make_model()).tar_sha256)
    (folder / package.RESULT).unlink()
    with pytest.raises(NotFound):
        package.read(world.store, world.trusted, "default", "digits", folder.name)


@pytest.mark.parametrize("name", [package.TAR, package.MODEL_SIG, package.TAR_SIG, package.PROVENANCE, package.SIGNER])
def test_a_half_finished_package_that_was_altered_is_refused_and_never_committed(name: str, world: World) -> None:
    model = world.make_model()
    settings = env(world, model)
    assert main(settings) == OK
    folder = world.folder(world.output("package"))
    (folder / package.RESULT).unlink()
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert main(settings) == VERIFICATION_FAILED
    assert not (folder / package.RESULT).exists()
    assert (folder / name).read_bytes() == data


def test_eight_signers_at_once_make_one_package(world: World) -> None:
    model, results = world.make_model(), []
    threads = [threading.Thread(target=lambda: results.append(world.signed(model))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 8
    assert len(set(map(repr, results))) == 1
    assert verify_directory(world.folder(results[0].tar_sha256), world.trusted) == []


def test_pickles_are_refused_by_name_unless_the_setting_allows_them_and_then_recorded(world: World) -> None:
    model = world.make_model()
    (model / "one.pkl").touch()
    (model / "two").write_bytes(pickle.dumps([1]))
    settings = env(world, model)
    assert main(settings) == BAD_DATA
    assert "one.pkl" in world.output("failure")
    assert "two" in world.output("failure")
    assert main({**settings, "AEGIS_ALLOW_PICKLE": "true"}) == OK
    held = package.read(world.store, world.trusted, "default", "digits", world.output("package"))
    assert held.internal["pickle_allowed"] is True


def write_key(path: Path, pem: bytes, mode: int = 0o600) -> None:
    path.write_bytes(pem)
    path.chmod(mode)


def pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


P256, P384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
KEYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "No such file"),
    "readable by everyone": (lambda path: path.chmod(0o644), "lets everyone in"),
    "not PEM": (lambda path: write_key(path, b"hunter2-hunter2"), "not an unencrypted PEM"),
    "encrypted": (lambda path: write_key(path, pem(P256, b"hunter2-hunter2")), "not an unencrypted PEM"),
    "another curve": (lambda path: write_key(path, pem(P384)), "not a P-256 key"),
    "not trusted": (lambda path: write_key(path, pem(P256)), "not among the trusted keys"),
}


@pytest.mark.parametrize("what", KEYS)
def test_a_key_that_is_unfit_denies_signing_and_nothing_is_written(
    what: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = env(world, world.make_model())
    spoil, message = KEYS[what]
    spoil(world.root / "keys" / "signing.pem")
    assert main(settings) == SIGNING_DENIED
    said = "".join(capsys.readouterr())
    assert message in said
    assert "hunter2" not in said
    assert everything(world.root / "models") == {}


def test_settings_faults_are_all_named_at_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    broken = world.env(
        AEGIS_MODEL="../x",
        AEGIS_EVENT="!",
        AEGIS_SETTINGS=encoded({"alias": "v1"}),
        AEGIS_INPUTS="x",
        AEGIS_MODELS_URI="",
    )
    assert main(broken) == USAGE
    said = capsys.readouterr().err
    names = ("AEGIS_MODEL", "AEGIS_EVENT", "AEGIS_SETTINGS.alias", "AEGIS_INPUTS", "AEGIS_MODELS_URI")
    assert [name for name in names if f"{name}: " not in said] == []
    assert main(env(world, world.make_model()) | {"AEGIS_DIGEST": "short"}) == USAGE


@pytest.mark.parametrize("text", ["{", "[]", '{"sources": [{"uri": 1, "digest": "x"}]}', '{"sources": [1]}'])
def test_a_model_that_misstates_its_data_is_bad_data(text: str, world: World) -> None:
    model = world.make_model()
    (model / "aegis_dataset.json").write_text(text)
    assert main(env(world, model)) == BAD_DATA
    assert "aegis_dataset.json" in world.output("failure")


def test_a_model_that_says_nothing_about_its_data_is_signed_all_the_same(world: World) -> None:
    model = world.make_model()
    (model / "aegis_dataset.json").unlink()
    assert main(env(world, model)) == OK


def test_an_unexpected_error_tells_its_kind_and_place_but_not_its_text(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("hunter2-hunter2")

    monkeypatch.setattr(manifest, "pack", fail)
    assert main(env(world, world.make_model())) == 1
    said = "".join(capsys.readouterr())
    assert "unexpected RuntimeError at test_sign.py" in said
    assert "hunter2" not in said


def test_errors_are_told_without_the_secrets_that_they_quote(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    settings = env(world, world.make_model(), AWS_SECRET_ACCESS_KEY="hunter2-aws")
    for uri in ("ftp://user:hunter2@host/x", "ftp://host/hunter2-aws"):
        assert main(settings | {"AEGIS_MODELS_URI": uri}) == BAD_DATA
        said = capsys.readouterr().err + world.output("failure")
        assert "ftp://" in said
        assert "hunter2" not in said


def test_a_process_signs_and_no_output_holds_a_secret(world: World) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "hunter2-aws-secret", "MLFLOW_TRACKING_PASSWORD": "hunter2-mlflow"}
    settings = process_env(env(world, world.make_model(), **secrets))
    command = [sys.executable, "-m", "sign_model.sign"]
    good = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert (good.returncode, good.stderr) == (OK, "")
    broken = settings | {"AEGIS_MODELS_URI": "ftp://user:hunter2-aws-secret@host/x"}
    bad = subprocess.run(command, env=broken, capture_output=True, text=True, timeout=60, check=False)
    assert bad.returncode not in {OK, 1}
    body = (world.root / "keys" / "signing.pem").read_text().splitlines()[1]
    texts = [
        good.stdout,
        bad.stdout,
        bad.stderr,
        world.output("failure"),
        *map(str, everything(world.root / "models").values()),
    ]
    assert not [text for text in texts if "hunter2" in text or body in text]


def test_a_made_key_is_private_trusted_kept_and_one_for_all(tmp_path: Path) -> None:
    path, trusted = tmp_path / "keys" / "signing.pem", tmp_path / "trusted"
    made: list[bytes] = []
    threads = [threading.Thread(target=lambda: made.append(keys.ensure(path, trusted).public_pem())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 8
    assert len(set(made)) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(signature.load_keys(trusted)) == len([*trusted.iterdir()]) == len([*path.parent.iterdir()]) == 1
    before = path.read_bytes()
    keys.ensure(path, trusted)
    assert path.read_bytes() == before


@pytest.mark.parametrize("uri", ["", "signing.pem", "file://host/x", "hashivault://a/b", "file:///nowhere"])
def test_a_key_uri_that_names_no_file_denies_signing(uri: str) -> None:
    with pytest.raises(Permanent) as caught:
        keys.load(uri)
    assert caught.value.exit_code == SIGNING_DENIED


def test_a_signer_never_shows_its_key() -> None:
    signer = keys.FileSigner("file:///x", P256)
    assert "key" not in repr(signer)
    assert json.dumps(os.fspath(signer.uri))
