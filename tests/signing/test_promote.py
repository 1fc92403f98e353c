"""Promotion: the signed bytes and no others, one winner, and after any death one version and one serial."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    ABORTED,
    BAD_REQUEST,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.tracking import MlflowClient

from aegis import manifest, package
from aegis.errors import OK, TRANSIENT, USAGE, VERIFICATION_FAILED, Conflict, Permanent, Temporary
from aegis.names import alias_of
from aegis.storage import Store
from sign_model import adopt
from sign_model.promote import PROMOTED, STALE, Promotion, main
from sign_model.registry import MlflowRegistry
from sign_model.verify import verify_directory
from tests.signing.world import Fuse, World, dies_everywhere, encoded, process_env


@pytest.fixture(autouse=True)
def own_name(world: World, request: pytest.FixtureRequest) -> None:
    """MLflow outlives a test: each uses a model name of its own."""
    world.model = f"m{abs(hash(request.node.nodeid)) % 10**9}"


def versions(world: World, client: MlflowClient) -> list[Any]:
    return sorted(client.search_model_versions(f"name = '{world.model}'"), key=lambda version: int(version.version))


def alias(world: World, client: MlflowClient, name: str = "champion") -> str:
    return str(client.get_model_version_by_alias(world.model, name).version)


def test_the_first_promotion_registers_the_signed_bytes_and_points_at_them(
    world: World, models: MlflowRegistry, tmp_path: Path
) -> None:
    model = world.make_model()
    signed = world.signed(model)
    done = world.promoted(signed.tar_sha256, models)
    assert (done.outcome, done.serial, done.version) == (PROMOTED, 1, "1")
    made = world.pointer()
    assert made is not None
    assert (made.serial, made.tar_sha256, made.root_digest) == (1, signed.tar_sha256, signed.root_digest)
    assert (made.model_version, made.workflow, made.promoted_at) == ("1", "uid-1", "2026-03-04T05:06:07.000Z")
    assert made.package == f"{world.uri}/packages/default/{world.model}/{signed.tar_sha256}"
    (version,) = versions(world, models._client)
    assert version.tags == {
        "aegis.workflow_uid": "uid-1",
        "aegis.tar_sha256": signed.tar_sha256,
        "aegis.environment": "default",
        "aegis.workflow": "aegis-digits-uid-1",
        "aegis.run_id": "",
        "aegis.root_digest": signed.root_digest,
        "aegis.package": made.package,
        "aegis.pointer_serial": "1",
    }
    assert alias(world, models._client) == "1"
    from mlflow.artifacts import download_artifacts

    copy = Path(download_artifacts(f"models:/{world.model}@champion", dst_path=str(tmp_path / "copy")))
    (copy / "registered_model_meta").unlink(missing_ok=True)
    assert manifest.root_digest(manifest.walk(copy)) == signed.root_digest


def test_the_next_champion_gets_the_next_serial_and_the_alias(world: World, models: MlflowRegistry) -> None:
    first, second = world.signed(world.make_model("a", "a")), world.signed(world.make_model("b", "b"), "uid-2")
    world.promoted(first.tar_sha256, models)
    done = world.promoted(second.tar_sha256, models, first.tar_sha256, "uid-2")
    assert (done.outcome, done.serial, done.version, alias(world, models._client)) == (PROMOTED, 2, "2", "2")


def test_an_alias_that_was_apart_from_the_pointer_is_not_moved_without_a_word(
    world: World, models: MlflowRegistry
) -> None:
    tars = [world.signed(world.make_model(text, text), f"uid-{text}").tar_sha256 for text in ("a", "b", "c")]
    for tar, champion, text in zip(tars[:2], ["", tars[0]], "ab", strict=True):
        assert "apart" not in world.promoted(tar, models, champion, f"uid-{text}").explanation
    models.alias(world.model, "champion", "1")  # by hand
    done = world.promoted(tars[2], models, tars[1], "uid-c")
    assert "the alias champion stood at version 1, apart from the pointer" in done.explanation
    assert alias(world, models._client) == "3"
    told = {v.version: v.tags.get("aegis.alias_was_at") for v in versions(world, models._client)}
    assert {str(number): tag for number, tag in told.items()} == {"1": None, "2": None, "3": "1"}
    assert "apart" not in world.promoted(tars[2], models, tars[1], "uid-c").explanation, "again"


def test_a_challenger_compared_with_an_older_champion_is_stale_and_changes_nothing(
    world: World, models: MlflowRegistry
) -> None:
    first, second = world.signed(world.make_model("a", "a")), world.signed(world.make_model("b", "b"), "uid-2")
    world.promoted(first.tar_sha256, models)
    for champion in ("", "00" * 32):
        done = world.promoted(second.tar_sha256, models, champion, "uid-2")
        assert (done.outcome, done.serial, done.version) == (STALE, 1, "")
    assert len(versions(world, models._client)) == 1
    assert alias(world, models._client) == "1"


def test_promoting_again_changes_nothing(world: World, models: MlflowRegistry) -> None:
    signed = world.signed(world.make_model())
    first = world.promoted(signed.tar_sha256, models)
    before = world.pointer_file().read_bytes()
    fuse, client = Fuse(), models._client
    models._client = fuse.around(client)
    assert world.promoted(signed.tar_sha256, models) == first
    models._client = client
    assert not [name for name in fuse.seen if name.startswith(("create", "log", "delete"))]
    assert world.pointer_file().read_bytes() == before
    assert len(versions(world, models._client)) == 1


def test_a_death_at_any_call_leaves_what_the_next_run_finishes_once(world: World, models: MlflowRegistry) -> None:
    number, base, client = 0, world.model, models._client
    signed: package.Package

    def run(fuse: Fuse) -> None:
        nonlocal number, signed
        number += 1
        world.model = f"{base}-{number}"
        signed = world.signed(world.make_model(f"model-{number}", f"weights {number}"))
        models._client = fuse.around(client)
        try:
            world.promoted(signed.tar_sha256, models, store=fuse.around(world.store))
        finally:
            models._client = client

    def check(death: str) -> None:
        done = world.promoted(signed.tar_sha256, models)
        assert (done.outcome, done.serial, done.version) == (PROMOTED, 1, "1"), death
        assert len(versions(world, client)) == 1, death
        assert alias(world, client) == "1", death

    names = dies_everywhere(run, check)
    boundaries = {"swap", "create_registered_model", "create_logged_model", "log_model_artifacts"}
    boundaries |= {
        "finalize_logged_model",
        "create_model_version",
        "set_registered_model_alias",
        "set_model_version_tag",
    }
    assert boundaries <= set(names)
    assert not [*world.scratch.iterdir()]


class Doubles:
    """A client whose POST was sent twice, as MLflow's does when only the answer was lost."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def create_model_version(self, *args: Any, **kwargs: Any) -> None:
        self._client.create_model_version(*args, **kwargs)
        self._client.create_model_version(*args, **kwargs)


def test_a_version_made_twice_by_a_repeated_post_is_one_afterwards(world: World, models: MlflowRegistry) -> None:
    client, models._client = models._client, Doubles(models._client)  # type: ignore[assignment]
    done = world.promoted(world.signed(world.make_model()).tar_sha256, models)
    assert done.version == "1"
    assert [int(version.version) for version in versions(world, client)] == [1]


class Lost:
    """A store that swaps and then says it lost, as after an answer that never came."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def swap(self, path: str, source: bytes | Path, expected: str | None) -> str:
        self._store.swap(path, source, expected)
        raise Conflict("somebody was faster")


def test_a_conflict_with_our_own_swap_is_a_success(world: World, models: MlflowRegistry) -> None:
    signed = world.signed(world.make_model())
    done = world.promoted(signed.tar_sha256, models, store=Lost(world.store))
    assert (done.outcome, done.serial) == (PROMOTED, 1)


class Overtaken:
    """A store in which somebody else swaps just before we do."""

    def __init__(self, store: Store, other: Callable[[], object]) -> None:
        self._store, self._other = store, other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def swap(self, path: str, source: bytes | Path, expected: str | None) -> str:
        self._other()
        return self._store.swap(path, source, expected)


def test_who_is_overtaken_at_the_last_moment_is_stale_and_its_version_says_so(
    world: World, models: MlflowRegistry
) -> None:
    first, second = world.signed(world.make_model("a", "a")), world.signed(world.make_model("b", "b"), "uid-2")
    store: Any = Overtaken(world.store, lambda: world.promoted(first.tar_sha256, models))
    done = world.promoted(second.tar_sha256, models, uid="uid-2", store=store)
    assert (done.outcome, done.serial, done.version) == (STALE, 1, "")
    told = {version.tags["aegis.workflow_uid"]: version for version in versions(world, models._client)}
    assert told["uid-2"].tags["aegis.outcome"] == STALE
    assert alias(world, models._client) == str(told["uid-1"].version)


def test_an_altered_package_is_never_registered(world: World, models: MlflowRegistry) -> None:
    signed = world.signed(world.make_model())
    tar = world.folder(signed.tar_sha256) / package.TAR
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(Permanent) as caught:
        world.promoted(signed.tar_sha256, models)
    assert caught.value.exit_code == VERIFICATION_FAILED
    assert world.pointer() is None
    assert versions(world, models._client) == []


def test_a_process_promotes_into_a_real_server_from_the_run_that_trained(world: World, server: str) -> None:
    client = MlflowClient(server)
    run = client.create_run(client.create_experiment(world.model)).info.run_id
    signed = world.signed(world.make_model())
    more = {"AEGIS_PACKAGE": signed.tar_sha256, "AEGIS_CHAMPION": "", "AEGIS_RUN_ID": run}
    secret = {"MLFLOW_TRACKING_USERNAME": "aegis", "MLFLOW_TRACKING_PASSWORD": "hunter2-password"}
    event = {"event_id": "event-1", "fingerprint": "f00d", "reason": "Drifting \u202e\x1b"}
    settings = process_env(world.env(MLFLOW_TRACKING_URI=server, AEGIS_EVENT=encoded(event), **more, **secret))
    for _ in range(2):
        command = [sys.executable, "-m", "sign_model.promote"]
        ended = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == OK, ended.stderr
        assert (world.output("outcome"), world.output("pointer"), world.output("registered-version")) == (
            PROMOTED,
            "1",
            "1",
        )
        assert "hunter2" not in ended.stdout + ended.stderr
    (version,) = versions(world, client)
    assert version.run_id == run
    wanted = {
        "run_id": run,
        "event_id": "event-1",
        "fingerprint": "f00d",
        "reason": "Drifting \ufffd\ufffd",
        "workflow_uid": "uid-1",
    }
    assert {f"aegis.{name}": value for name, value in wanted.items()}.items() <= version.tags.items()
    assert [model.source_run_id for model in client.search_logged_models([client.get_run(run).info.experiment_id])] == [
        run
    ]


def test_a_stale_challenger_ends_with_exit_code_zero_and_its_outcome(
    world: World, models: MlflowRegistry, database: str
) -> None:
    first, second = world.signed(world.make_model("a", "a")), world.signed(world.make_model("b", "b"), "uid-2")
    world.promoted(first.tar_sha256, models)
    more = {"AEGIS_PACKAGE": second.tar_sha256, "AEGIS_CHAMPION": "", "AEGIS_WORKFLOW_UID": "uid-2"}
    assert main(world.env(MLFLOW_TRACKING_URI=database, **more)) == OK
    assert world.output("outcome") == STALE
    assert "The champion changed" in world.output("explanation")


def test_missing_and_malformed_settings_are_usage_errors(world: World) -> None:
    tar = world.signed(world.make_model()).tar_sha256
    good = world.env(AEGIS_PACKAGE=tar, AEGIS_CHAMPION="", MLFLOW_TRACKING_URI="sqlite://")
    for name, value in [("AEGIS_PACKAGE", "../x"), ("AEGIS_CHAMPION", "x"), ("MLFLOW_TRACKING_URI", "")]:
        assert main({**good, name: value}) == USAGE
    assert main({name: value for name, value in good.items() if name != "AEGIS_CHAMPION"}) == USAGE


ERRORS: Mapping[Exception, int] = {
    MlflowException("down", error_code=TEMPORARILY_UNAVAILABLE): TRANSIENT,
    MlflowException("no"): TRANSIENT,  # INTERNAL_ERROR is what a lost connection becomes
    MlflowException("later", error_code=REQUEST_LIMIT_EXCEEDED): TRANSIENT,
    MlflowException("later", error_code=ABORTED): TRANSIENT,
    MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed", error_code=BAD_REQUEST): TRANSIENT,
    MlflowException("no", error_code=PERMISSION_DENIED): USAGE,
    MlflowException.invalid_parameter_value("bad"): USAGE,
    requests.ConnectionError("gone"): TRANSIENT,
    OSError("disk"): TRANSIENT,
}


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_what_mlflow_raises_becomes_try_again_or_give_up(
    error: Exception, world: World, models: MlflowRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(models._client, "create_model_version", fail)
    tar = world.signed(world.make_model()).tar_sha256
    with pytest.raises((Temporary, Permanent)) as caught:
        world.promoted(tar, models)
    assert getattr(caught.value, "exit_code", None) == ERRORS[error]
    assert world.pointer() is None


def test_a_real_server_takes_an_adopted_model(world: World, server: str) -> None:
    done = adopted(world, MlflowRegistry(server), world.make_model())
    assert (done.outcome, alias(world, MlflowClient(server))) == (PROMOTED, "1")


def adopted(world: World, models: MlflowRegistry, directory: Path, alias: str = "") -> Promotion:
    return adopt.adopt(directory, world.environment, world.model, world.chain(models), alias=alias)


def test_a_model_that_already_serves_is_adopted_once_and_can_come_back(world: World, models: MlflowRegistry) -> None:
    old, new = world.make_model("old", "old"), world.make_model("new", "new")
    first = adopted(world, models, old)
    assert (first.outcome, first.serial, first.version) == (PROMOTED, 1, "1")
    assert adopted(world, models, old) == first
    made = world.pointer()
    assert made is not None
    assert verify_directory(world.folder(made.tar_sha256), world.trusted, pointer_file=world.pointer_file()) == []
    signed = world.signed(new, "uid-2")
    assert world.promoted(signed.tar_sha256, models, made.tar_sha256, "uid-2").serial == 2
    back = adopted(world, models, old)
    assert (back.outcome, back.serial, back.version) == (PROMOTED, 3, "1")
    assert alias(world, models._client) == "1"


def test_an_adopted_champion_gets_the_alias_that_its_retrains_would_move(world: World, models: MlflowRegistry) -> None:
    world.environment = "eu.prod"
    adopted(world, models, world.make_model())
    assert alias(world, models._client, alias_of("eu.prod")) == "1"
    adopted(world, models, world.root / "model", "best")
    assert alias(world, models._client, "best") == "1"


def test_adopting_under_a_bad_name_is_a_usage_error(world: World, models: MlflowRegistry) -> None:
    world.model, world.environment = "../x", "a/b"
    with pytest.raises(Permanent) as caught:
        adopted(world, models, world.root, "v1")
    assert caught.value.faults.keys() == {"model", "environment", "alias"}
