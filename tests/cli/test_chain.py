"""`aegis rollback`, `aegis resign` and the policy of `aegis verify`, on one machine with a real MLflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from aegis import pointer, signature
from aegis_cli import main
from aegis_cli.doctor import OK, WRONG
from aegis_cli.stack import State
from retrain_trigger.local import LocalLedger
from retrain_trigger.model import Status
from sign_model.registry import MlflowRegistry
from tests.cli.conftest import Aegis
from tests.cli.test_doctor import NOW, by_check
from tests.signing.world import World


@pytest.fixture
def machine(tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> State:
    """The state of an `aegis up` with MLflow."""
    state = State(tmp_path / "state")
    monkeypatch.setenv("AEGIS_STATE", str(state.root))
    state.root.mkdir(mode=0o700)
    state.addresses.write_text(json.dumps(dict.fromkeys(("receiver", "trigger", "mlflow"), mlflow_server)))
    return state


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """MLflow outlives a test: each uses a name of its own."""
    return f"c{abs(hash(request.node.nodeid)) % 10**9}"


def adopt(aegis: Aegis, tmp_path: Path, model: str, text: str) -> None:
    made = tmp_path / text
    made.mkdir()
    (made / "MLmodel").write_text(f"flavors: {{}}  # {text}\n")
    done = aegis("adopt", model, str(made))
    assert done.code == 0, done.err


def champion(state: State, model: str) -> pointer.Pointer:
    (found,) = state.models.glob(f"champions/*/{model}/pointer.json")
    return pointer.unseal(found.read_bytes(), signature.load_keys(state.trusted))


def alias(mlflow_server: str, model: str) -> str:
    return str(MlflowClient(mlflow_server, mlflow_server).get_model_version_by_alias(model, "champion").version)


def test_a_model_is_rolled_back_by_one_command(
    machine: State, mlflow_server: str, model: str, tmp_path: Path, aegis: Aegis
) -> None:
    for text in ("a", "b", "c"):
        adopt(aegis, tmp_path, model, text)
    done = aegis("rollback", model)
    assert (done.code, done.out) == (0, f"default/{model} is version 2, pointer serial 4.\n")
    assert aegis("rollback", model, "--to", "1").code == 0
    assert (champion(machine, model).serial, alias(mlflow_server, model)) == (5, "1")
    done = aegis("rollback", model, "--to", "8")
    assert (done.code, "no version 8" in done.err) == (65, True)
    assert aegis("rollback", "nobody").code == 65


def test_what_a_revoked_key_signed_is_signed_again_by_one_command(
    machine: State, mlflow_server: str, model: str, tmp_path: Path, aegis: Aegis
) -> None:
    adopt(aegis, tmp_path, model, "a")
    tar, (old,) = champion(machine, model).tar_sha256, machine.trusted.iterdir()
    shutil.move(old, tmp_path / "old.pub")
    machine.signing_key.unlink()  # the next command makes another one
    assert aegis("resign", model).code == 76
    arguments = ("resign", model, "--trust", str(tmp_path / "old.pub"))
    assert aegis(*arguments, "--package", "00" * 32).code == 76
    assert aegis(*arguments, "--package", tar).code == 0
    now = champion(machine, model)
    assert (now.serial, now.tar_sha256, alias(mlflow_server, model)) == (2, tar, "1")
    folder = now.package.removeprefix("file://")
    done = aegis("verify", folder, "--pointer", str(machine.models / pointer.path_of("default", model)))
    assert done.code == 0, done.out
    with pytest.raises(SystemExit) as end:
        main.main(["resign", model, "--package", "x"])
    assert end.value.code == 64


def test_the_policy_is_asked_and_every_fault_is_named(tmp_path: Path, aegis: Aegis) -> None:
    (tmp_path / "signing").mkdir()
    world = World(tmp_path / "signing")
    folder = world.folder(world.signed(world.make_model()).tar_sha256)
    known = ("verify", str(folder), "--keys", str(world.trusted_dir))
    kinds = [word for kind in ("MLmodel", ".json", ".bin", ".txt") for word in ("--kind", kind)]
    assert aegis(*known, "--dataset-prefix", "file:///data/", *kinds).code == 0
    done = aegis(*known, "--dataset-prefix", "gs://other/", "--kind", ".json", "--json")
    assert done.code == 76
    assert {fault.partition(": ")[0] for fault in done.json["faults"]} == {
        *("dataset file:///data/new", "MLmodel", "data.txt", "data/weights.bin")
    }
    done = aegis(*known, "--dataset-prefix", "other", "--kind", "*")
    assert (done.code, "--dataset-prefix" in done.err, "--kind" in done.err) == (64, True, True)


def test_a_pickle_is_refused_unless_the_reader_allows_it(
    machine: State, model: str, tmp_path: Path, aegis: Aegis
) -> None:
    made = tmp_path / "pickled"
    made.mkdir()
    (made / "model.pkl").write_bytes(b"x")
    assert aegis("adopt", model, str(made), "--allow-pickle").code == 0
    folder = str(champion(machine, model).package.removeprefix("file://"))
    done = aegis("verify", folder)
    assert (done.code, "model.pkl: pickle family by its name" in done.out) == (76, True)
    assert aegis("verify", folder, "--allow-pickle").code == 0


def test_an_alias_that_somebody_moved_is_reported_and_stays_until_a_person_acts(
    machine: State, mlflow_server: str, model: str, tmp_path: Path, aegis: Aegis
) -> None:
    adopt(aegis, tmp_path, model, "a")
    adopt(aegis, tmp_path, model, "b")
    LocalLedger(machine.objects(), lambda: "uid").create("default", model, Status(), NOW)
    MlflowRegistry(mlflow_server).alias(model, "champion", "1")
    found = by_check(aegis("doctor", "--json").json["findings"])["aliases"]
    assert (found.state, found.message) == (WRONG, f"champion of {model} is 1, the signed pointer 2")
    assert f"aegis rollback {model} --environment default --to 1" in found.mend
    assert (alias(mlflow_server, model), champion(machine, model).serial) == ("1", 2)
    assert aegis("rollback", model, "--to", "2").code == 0  # the pointer's own: only the alias is put right
    assert by_check(aegis("doctor", "--json").json["findings"])["aliases"].state == OK
    assert champion(machine, model).serial == 2


def test_one_pointer_that_is_refused_hides_no_other(
    machine: State, mlflow_server: str, model: str, tmp_path: Path, aegis: Aegis
) -> None:
    ledger = LocalLedger(machine.objects(), lambda: "uid")
    for name in (model, f"{model}-2"):
        adopt(aegis, tmp_path, name, f"of-{name}")
        ledger.create("default", name, Status(), NOW)
    (machine.models / pointer.path_of("default", model)).write_bytes(b"{}")
    MlflowClient(mlflow_server, mlflow_server).delete_registered_model_alias(f"{model}-2", "champion")
    found = by_check(aegis("doctor", "--json").json["findings"])["aliases"]
    assert found.state == WRONG
    assert f"the pointer of default/{model} is refused" in found.message
    assert f"aegis resign {model} --environment default --trust OLD.pub" in found.mend
    assert f"champion of {model}-2 is not set, the signed pointer 1" in found.message
