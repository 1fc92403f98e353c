"""The demo, run once to its good end; then each of its claims is made false by its effect, and the demo says so."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aegis import package, pointer, signature
from aegis.errors import Conflict, Permanent
from aegis.storage import open_store
from aegis_cli import demo as product
from aegis_cli.demo import CHECKS, ENVIRONMENT, FORGETFUL, GOOD, HARMED, Demo
from retrain_trigger.model import object_name
from sign_model import keys


@dataclass
class Told:
    """A demo at its end, with everything still running."""

    demo: Demo
    output: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """`aegis demo` in a thread that waits at its last line; its exit code is looked at when the tests are done."""
    folder = tmp_path_factory.mktemp("demo") / "state"
    reached, go_on = threading.Event(), threading.Event()
    runs: list[Demo] = []
    codes: list[int | BaseException] = []
    last_words = Demo.where_to_look

    def wait(self: Demo) -> None:
        last_words(self)
        runs.append(self)
        reached.set()
        go_on.wait()

    def work() -> None:
        try:
            codes.append(product.demo(folder, 0))
        except BaseException as exc:  # noqa: BLE001  # whatever it is, the fixture shows it
            codes.append(exc)
        finally:
            reached.set()

    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(Demo, "where_to_look", wait)
        thread = threading.Thread(target=work)
        thread.start()
        reached.wait(timeout=600)
    try:
        assert runs, f"{codes} after:\n{output.getvalue()}"
        yield Told(runs[0], output.getvalue())
    finally:
        go_on.set()
        thread.join(timeout=60)
    assert codes == [0]


# --- what it says ------------------------------------------------------------------------------------------------


def test_every_check_was_made_and_the_time_was_told(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(f"checked: {name}" in told.output for name in CHECKS)
    [line] = [line for line in told.output.splitlines() if "It took" in line]
    with capsys.disabled():
        print(f"\naegis demo: {line}")


def test_a_demo_that_takes_too_long_says_so() -> None:
    assert product.took(26.4) == "It took 26 s."
    assert product.took(75.1) == "It took 75 s: more than the 60 s that an idle machine may need."


def test_it_says_where_to_look_next_and_that_is_there(told: Told) -> None:
    _, _, after = told.output.partition("Where to look next")
    lines = {line[2:18].strip(): line[18:].strip() for line in after.strip("\n").splitlines()}
    assert Path(lines["the model card"]).is_file()
    for name in ("the story", "the package"):
        done = subprocess.run(lines[name].split(), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    assert "mlflow ui --backend-store-uri sqlite:////" in lines["runs and models"]


def test_a_folder_that_is_not_a_demos_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(Permanent) as refused:
        product.demo(tmp_path, 0)
    assert refused.value.exit_code == 64
    assert (tmp_path / "thesis.txt").exists()


# --- sabotage ----------------------------------------------------------------------------------------------------

Sabotage = Callable[[Demo], AbstractContextManager[None]]
SABOTAGES: dict[str, tuple[str, Sabotage]] = {}


def against(check: str) -> Callable[[Callable[[Demo], Iterator[None]]], None]:
    """Note a way to make this claim false; it must be true again afterwards."""

    def note(way: Callable[[Demo], Iterator[None]]) -> None:
        SABOTAGES[way.__name__.strip("_")] = (check, contextmanager(way))

    return note


def changed(demo: Demo, kind: str, name: str, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """One stored object, altered and put back."""
    objects = demo.state.objects()

    def put(make: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        for _ in range(50):  # reconcile writes there too
            stored = objects.get(kind, name)
            assert stored is not None
            before = copy.deepcopy(stored.doc)
            with contextlib.suppress(Conflict):
                objects.replace(kind, name, make(stored.doc), stored.version, pending=stored.pending)
                return before
        raise AssertionError("too many others write there")

    def altered(doc: dict[str, Any]) -> dict[str, Any]:
        change(doc)
        return doc

    before = put(altered)
    yield
    put(lambda _: before)


def ledger(demo: Demo, model: str, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    return changed(demo, "ManagedModel", object_name(ENVIRONMENT, model), lambda doc: change(doc["status"]))


def workflow(demo: Demo, model: str, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    return changed(demo, "Workflow", demo.workflows(model)[0]["metadata"]["name"], change)


def moved_alias(demo: Demo, model: str, version: str) -> Iterator[None]:
    """The champion alias on another version."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=demo.stack.urls["mlflow"], registry_uri=demo.stack.urls["mlflow"])
    before = demo.version(model).version
    client.set_registered_model_alias(model, "champion", version)
    yield
    client.set_registered_model_alias(model, "champion", before)


def altered_tag(demo: Demo, model: str, tag: str) -> Iterator[None]:
    """One tag of the champion's version, with another value."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=demo.stack.urls["mlflow"], registry_uri=demo.stack.urls["mlflow"])
    version = demo.version(model)
    client.set_model_version_tag(model, version.version, tag, "somebody else's")
    yield
    client.set_model_version_tag(model, version.version, tag, version.tags[tag])


def moved_pointer(demo: Demo, model: str, **changes: Any) -> Iterator[None]:
    """A pointer that says something else, properly signed."""
    store = open_store(demo.state.models.as_uri(), env={})
    path = pointer.path_of(ENVIRONMENT, model)
    found = pointer.read(store, signature.load_keys(demo.state.trusted), ENVIRONMENT, model)
    assert found is not None
    before = store.read(path, limit=pointer.MAX_POINTER)
    signer = keys.load(demo.state.signing_key.as_uri())
    version = store.swap(path, pointer.seal(dataclasses.replace(found[0], **changes), signer), found[1])
    yield
    store.swap(path, before, version)


def flipped(path: Path) -> Iterator[None]:
    """A file with one other byte in its middle."""
    before, mode = path.read_bytes(), path.stat().st_mode
    other = bytearray(before)
    other[len(other) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(other)
    yield
    path.write_bytes(before)
    path.chmod(mode)


def first_champion(demo: Demo) -> str:
    """The tar digest of the champion that the demo began with."""
    folder = demo.state.models / "packages" / ENVIRONMENT / GOOD
    [tar] = [path.name for path in folder.iterdir() if path.name != demo.pointer(GOOD).tar_sha256]
    return tar


@against("a champion serves, signed")
def _an_alias_on_an_older_version(demo: Demo) -> Iterator[None]:
    yield from moved_alias(demo, GOOD, "1")


@against("a champion serves, signed")
def _a_pointer_that_nobody_signed(demo: Demo) -> Iterator[None]:
    yield from flipped(demo.state.models / pointer.path_of(ENVIRONMENT, HARMED))


@against("the champion fell on drifted data")
def _data_that_does_not_drift(demo: Demo) -> Iterator[None]:
    data, first = demo.data, demo.accuracy["first"]
    demo.data = dataclasses.replace(data, drifted=data.reference)
    demo.accuracy["first"] = demo._scores(HARMED)  # the first champion still serves there
    yield
    demo.data, demo.accuracy["first"] = data, first


@against("the champion fell on drifted data")
def _a_champion_that_was_never_good(demo: Demo) -> Iterator[None]:
    data, first = demo.data, demo.accuracy["first"]
    wrong = dataclasses.replace(data.reference, labels=(data.reference.labels + 1) % 10)
    demo.data = dataclasses.replace(data, reference=wrong)
    demo.accuracy["first"] = demo._scores(HARMED)
    yield
    demo.data, demo.accuracy["first"] = data, first


@against("the alert made one Workflow")
def _no_workflow(demo: Demo) -> Iterator[None]:
    yield from workflow(demo, GOOD, lambda doc: doc["metadata"]["labels"].clear())


@against("the alert made one Workflow")
def _two_workflows(demo: Demo) -> Iterator[None]:
    yield from second_workflow(demo)


@against("the alert made one Workflow")
def _a_workflow_of_another_alert(demo: Demo) -> Iterator[None]:
    yield from workflow(demo, GOOD, lambda doc: doc["metadata"]["annotations"].update({"aegis.dev/fingerprint": "00"}))


def second_workflow(demo: Demo) -> Iterator[None]:
    """A Workflow of a forgetful model that claims to be the good one's."""
    labels = {"aegis.dev/managed-model": object_name(ENVIRONMENT, GOOD)}
    yield from workflow(demo, FORGETFUL, lambda doc: doc["metadata"]["labels"].update(labels))


@against("every step of the Workflow ran")
def _a_step_that_failed(demo: Demo) -> Iterator[None]:
    def fail(doc: dict[str, Any]) -> None:
        for node in doc["status"]["nodes"].values():
            if node["templateName"] == "gate":
                node["phase"] = "Failed"

    yield from workflow(demo, GOOD, fail)


@against("every step of the Workflow ran")
def _a_step_that_never_ran(demo: Demo) -> Iterator[None]:
    def forget(doc: dict[str, Any]) -> None:
        nodes = doc["status"]["nodes"]
        doc["status"]["nodes"] = {key: node for key, node in nodes.items() if node["templateName"] != "sign"}

    yield from workflow(demo, GOOD, forget)


@against("every step of the Workflow ran")
def _a_workflow_that_did_not_succeed(demo: Demo) -> Iterator[None]:
    yield from workflow(demo, GOOD, lambda doc: doc["status"].update(phase="Failed"))


@against("the challenger is better, on data that nobody trained on")
def _a_pointer_to_the_old_champion(demo: Demo) -> Iterator[None]:
    tar = first_champion(demo)
    where = f"{demo.state.models.as_uri()}/{package.folder(ENVIRONMENT, GOOD, tar)}"
    held = package.check(
        {name: (demo.state.models / package.folder(ENVIRONMENT, GOOD, tar) / name).read_bytes()
         for name in package.SMALL},
        signature.load_keys(demo.state.trusted), tar_sha256=tar, model=GOOD, environment=ENVIRONMENT,
    )  # fmt: skip
    yield from moved_pointer(demo, GOOD, tar_sha256=tar, package=where, root_digest=held.root_digest)


@against("the challenger is better, on data that nobody trained on")
def _a_ledger_that_says_rejected(demo: Demo) -> Iterator[None]:
    yield from ledger(demo, GOOD, lambda status: status["retrain"].update(outcome="Rejected"))


@against("the stock model_signing command accepts the signature")
def _another_byte_in_the_archive(demo: Demo) -> Iterator[None]:
    yield from flipped(demo.folder(GOOD) / "model.tar")


@against("the stock model_signing command accepts the signature")
def _another_byte_in_the_signature(demo: Demo) -> Iterator[None]:
    yield from flipped(demo.folder(GOOD) / "model.sig")


@against("the stock model_signing command accepts the signature")
def _a_signer_whom_nobody_trusts(demo: Demo) -> Iterator[None]:
    path = demo.folder(GOOD) / "signer.pub"
    before, mode = path.read_bytes(), path.stat().st_mode
    elsewhere = demo.state.root / "elsewhere"
    keys.ensure(elsewhere / "signing.pem", elsewhere / "trusted")
    path.chmod(0o600)
    path.write_bytes(next((elsewhere / "trusted").glob("*.pub")).read_bytes())
    yield
    path.write_bytes(before)
    path.chmod(mode)


@against("the promoted version leads back to the alert")
def _a_pointer_that_went_on(demo: Demo) -> Iterator[None]:
    yield from moved_pointer(demo, GOOD, serial=3)


@against("the promoted version leads back to the alert")
def _an_alias_elsewhere(demo: Demo) -> Iterator[None]:
    yield from moved_alias(demo, GOOD, "1")


@against("the promoted version leads back to the alert")
def _a_version_that_names_another_event(demo: Demo) -> Iterator[None]:
    yield from altered_tag(demo, GOOD, "aegis.event_id")


@against("the promoted version leads back to the alert")
def _a_version_that_names_another_alert(demo: Demo) -> Iterator[None]:
    yield from altered_tag(demo, GOOD, "aegis.fingerprint")


@against("the promoted version leads back to the alert")
def _a_ledger_that_names_another_version(demo: Demo) -> Iterator[None]:
    yield from ledger(demo, GOOD, lambda status: status["retrain"].update(registeredVersion="7"))


@against("the same alert again, and another, made no second Workflow")
def _a_repeat_that_nobody_noticed(demo: Demo) -> Iterator[None]:
    yield from ledger(demo, GOOD, lambda status: status["history"][-1].update(count=1))


@against("the same alert again, and another, made no second Workflow")
def _a_second_workflow(demo: Demo) -> Iterator[None]:
    yield from second_workflow(demo)


@against("the same alert again, and another, made no second Workflow")
def _an_alert_that_was_forgotten(demo: Demo) -> Iterator[None]:
    yield from ledger(demo, GOOD, lambda status: status["evidence"].pop())


@against("the same alert again, and another, made no second Workflow")
def _a_hold_without_its_reason(demo: Demo) -> Iterator[None]:
    yield from ledger(demo, GOOD, lambda status: status["history"][-1].update(reason="Other"))


def _refusal(check: str, model: str) -> None:
    def say(**changes: Any) -> Callable[[Demo], Iterator[None]]:
        return lambda demo: ledger(demo, model, lambda status: status["retrain"].update(changes))

    def signed_anyway(demo: Demo) -> Iterator[None]:
        node = {"type": "Pod", "templateName": "sign", "phase": "Succeeded"}
        return workflow(demo, model, lambda doc: doc["status"]["nodes"].update(sign=node))

    ways: dict[str, Callable[[Demo], Iterator[None]]] = {
        "promoted after all": say(outcome="Promoted"),
        "refused for another reason": say(explanation="not enough data"),
        "signed anyway": signed_anyway,
        "pointer moved": lambda demo: moved_pointer(demo, model, serial=2),
        "alias led elsewhere": lambda demo: altered_tag(demo, model, "aegis.tar_sha256"),
    }
    for name, way in ways.items():
        SABOTAGES[f"{model} {name}"] = (check, contextmanager(way))


_refusal("harmful data was refused", HARMED)
_refusal("a forgetful trainer was refused", FORGETFUL)


def test_each_check_has_its_sabotage() -> None:
    assert {check for check, _ in SABOTAGES.values()} == CHECKS.keys()


@pytest.mark.parametrize("way", SABOTAGES)
def test_a_claim_that_is_false_is_seen_and_once_true_again_holds(told: Told, way: str) -> None:
    check, sabotage = SABOTAGES[way]
    with sabotage(told.demo), pytest.raises(Permanent) as seen:
        told.demo._check(check)
    assert seen.value.exit_code != 0
    told.demo._check(check)


def test_the_command_ends_with_an_error_when_a_claim_is_false(tmp_path: Path) -> None:
    """The real command, on a camera that did not slip: the champion does not fall."""
    code = (
        "import sys\n"
        "from aegis_cli import demo_data, main\n"
        "demo_data.TURN_DEGREES, demo_data.CONTRAST, demo_data.NOISE = 0.0, 1.0, 0.0\n"
        "sys.exit(main.main(['demo', '--state', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "state")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == product.DemoFailed.exit_code == 70
    assert "the champion did not fall" in done.stderr
    assert "All of this was checked" not in done.stdout
