"""The command line: help, exit codes, what scripts read, and what is said when something is not as it should be."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aegis import pointer
from aegis.errors import Conflict
from aegis_cli import adoption, alerts, config, main, stack
from aegis_cli.stack import NotRunning, Stack, State
from retrain_trigger.local import LocalLedger
from retrain_trigger.model import Record, Retrain, Row, Status
from tests.signing.world import World
from tests.support import free_ports

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
COMMANDS = ["up", "send", "models", "why", "retrain", "approve", "doctor", "verify", "adopt", "rollback", "resign",
            "name", "config", "demo"]  # fmt: skip
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """A state folder of its own, which every command takes by default."""
    monkeypatch.setenv("AEGIS_STATE", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    return State(tmp_path / "state")


def known(state: State, model: str = "digits", **status: object) -> None:
    """Put a model into the ledger."""
    ledger = LocalLedger(state.objects(), lambda: secrets.token_hex(8))
    ledger.create("default", model, Status(**status), NOW)  # type: ignore[arg-type]  # the test's own fields


def ended(code: int, *arguments: str) -> None:
    """The parser itself ends the command with this code."""
    with pytest.raises(SystemExit) as end:
        main.main(arguments)
    assert end.value.code == code


# --- help and usage ----------------------------------------------------------------------------------------------


def test_help_names_every_command_and_every_exit_code(capsys: Output) -> None:
    ended(0, "--help")
    said = capsys.readouterr().out
    assert all(re.search(rf"^    {command} ", said, re.MULTILINE) for command in COMMANDS)
    assert all(code in said for code in ("0 ", "3 ", "64", "65", "69", "70", "75", "76", "77"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_the_exit_codes(command: str, capsys: Output) -> None:
    ended(0, command, "--help")
    said = capsys.readouterr().out
    assert f"aegis {command}" in said
    assert "exit codes" in said


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("nosuch",), ("send",), ("send", "a/b"), ("send", "digits", "--severity", "loud"), ("why",),
        ("why", "digits", "--environment", "\x1b[2J"), ("retrain", "digits"), ("verify",), ("adopt", "digits"),
        ("demo", "--seed", "x"), ("config",), ("config", "check"), ("models", "extra"), ("name", ""),
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_64(arguments: tuple[str, ...], capsys: Output) -> None:
    ended(64, *arguments)
    said = capsys.readouterr()
    assert "usage: aegis" in said.err
    assert said.out == ""
    assert all(line.isprintable() for line in said.err.splitlines())


# --- name, config ------------------------------------------------------------------------------------------------


def test_name_prints_the_objects_name(capsys: Output) -> None:
    assert main.main(["name", "digits", "--environment", "prod"]) == 0
    assert main.main(["name", "Fraud_Model"]) == 0
    first, second = capsys.readouterr().out.split()
    assert first == "digits.prod"
    assert re.fullmatch(r"fraud-model-default-[0-9a-f]{8}", second)


def test_config_check_names_every_fault_and_ends_with_64(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "aegis.yaml"
    path.write_text("ports: {receiver: 0}\ntrigger: {budget: none}\nmodels: [{model: a, cooldown: 1}]\n")
    assert main.main(["config", "check", str(path)]) == 64
    said = capsys.readouterr().err
    assert all(f"  {name}: " in said for name in ("ports.receiver", "trigger.budget", "models[0].cooldown"))
    path.write_text("ports: {receiver: 13000}\n")
    assert main.main(["config", "check", str(path)]) == 0
    assert "is good" in capsys.readouterr().out


def test_up_refuses_a_bad_file_before_it_starts_anything(tmp_path: Path, state: State) -> None:
    path = tmp_path / "aegis.yaml"
    path.write_text("ports: {receiver: 0}\n")
    assert main.main(["up", "--config", str(path)]) == 64
    assert list(state.root.iterdir()) == []


# --- send --------------------------------------------------------------------------------------------------------


class Sink(ThreadingHTTPServer):
    """A receiver that answers what it is told to."""

    status, answer = 200, b""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the library's name
                sink.got.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(sink.status)
                self.send_header("content-length", str(len(sink.answer)))
                self.end_headers()
                self.wfile.write(sink.answer)

            def log_message(self, format: str, *args: object) -> None:  # the library's name
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/alertmanager"


@pytest.fixture
def sink() -> Iterator[Sink]:
    server = Sink()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_dry_run_prints_the_alert_and_posts_nothing(sink: Sink, capsys: Output) -> None:
    arguments = ["send", "digits", "--url", sink.url, "--dry-run", "--severity", "critical", "--dataset", "s3://b/d/"]
    assert main.main([*arguments, "--environment", "prod", "--version", "7", "--feature", "age", "--resolved"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert sink.got == []
    assert printed["status"] == "resolved"
    assert printed["alerts"][0]["annotations"]["dataset_uri"] == "s3://b/d/"
    assert printed["alerts"][0]["labels"] == {
        "alertname": "ModelDrift", "model_name": "digits", "severity": "critical", "environment": "prod",
        "model_version": "7", "feature": "age",
    }  # fmt: skip


def test_send_posts_what_a_dry_run_prints_and_says_how_the_model_stands(
    sink: Sink, state: State, capsys: Output
) -> None:
    known(state, history=(Row(kind="Hold", reason="Cooldown", message="too soon", first=NOW, last=NOW),))
    assert main.main(["send", "digits", "--url", sink.url]) == 0
    assert capsys.readouterr().out == "default/digits: held: Cooldown (too soon)\n"
    sent = json.loads(sink.got[0])
    assert sent == alerts.payload(
        sent["alerts"][0]["labels"], {"summary": "sent by aegis send"},
        datetime.fromisoformat(sent["alerts"][0]["startsAt"]),
    )  # fmt: skip


def test_send_with_wait_is_a_no_when_the_alert_was_held(sink: Sink, state: State, capsys: Output) -> None:
    known(state, history=(Row(kind="Hold", reason="Cooldown", message="", first=NOW, last=NOW),))
    assert main.main(["send", "digits", "--url", sink.url, "--wait", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["model"] == "digits"


@pytest.mark.parametrize(("status", "code"), [(503, 75), (400, 65), (401, 65)])
def test_a_refusal_of_the_receiver_is_told_with_its_own_words(
    sink: Sink, status: int, code: int, capsys: Output
) -> None:
    sink.status, sink.answer = status, b"no: \x1b[2J"
    assert main.main(["send", "digits", "--url", sink.url]) == code
    said = capsys.readouterr().err
    assert f"the receiver answered {status}: no: \\x1b[2J" in said


def test_an_accepted_alert_that_no_model_took_is_told(sink: Sink, capsys: Output) -> None:
    assert main.main(["send", "digits", "--url", sink.url]) == 65
    assert "no such model is managed" in capsys.readouterr().err


def test_a_retrain_that_does_not_end_in_time_is_for_another_try(sink: Sink, state: State, capsys: Output) -> None:
    flying = Retrain(sequence=1, workflow="w", claim="c", phase="Submitted", first_claimed_at=NOW, claimed_at=NOW)
    known(state, retrain=flying)
    assert main.main(["send", "digits", "--url", sink.url, "--wait", "--timeout", "0.1"]) == 75
    said = capsys.readouterr()
    assert "w: Submitted" in said.out
    assert "aegis why digits" in said.err


# --- nothing runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["send", "digits"], ["adopt", "digits", "model"]])
def test_where_nothing_was_started_that_is_said(arguments: list[str], capsys: Output) -> None:
    assert main.main(arguments) == NotRunning.exit_code == 69
    assert "run `aegis up` first" in capsys.readouterr().err


def test_where_nothing_answers_any_more_that_is_said(state: State, capsys: Output) -> None:
    state.addresses.write_text(json.dumps({"receiver": "http://127.0.0.1:9"}))
    assert main.main(["send", "digits"]) == 69
    assert "is `aegis up` running?" in capsys.readouterr().err


def test_a_request_for_a_retrain_is_kept_for_later(state: State, capsys: Output) -> None:
    known(state)
    assert main.main(["retrain", "digits", "--why", "new labels"]) == 0
    assert "`aegis up` will take it up" in capsys.readouterr().out
    record = state.records().read("digits.default")
    assert record is not None
    assert record.request is not None
    assert record.request.why == "new labels"


def test_a_request_for_later_is_json_for_scripts_and_cannot_be_followed(state: State, capsys: Output) -> None:
    known(state)
    assert main.main(["retrain", "digits", "--why", "new labels", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "digits"
    assert main.main(["retrain", "digits", "--why", "new labels", "--wait"]) == 69
    assert "nothing runs" in capsys.readouterr().err


STARTED = Retrain(sequence=1, workflow="w-1", claim="c", phase="Submitted", first_claimed_at=NOW, claimed_at=NOW)
HELD = Row(kind="Hold", reason="Cooldown", message="", first=NOW, last=NOW)


@pytest.mark.parametrize(
    ("ended", "after", "code"),
    [
        ("Promoted", replace(STARTED, phase="Finished", outcome="Promoted"), 0),
        ("Rejected", replace(STARTED, phase="Finished", outcome="Rejected"), 3),
        ("Promoted", replace(STARTED, sequence=2, workflow="w-2", claim="another"), 0),
        ("Rejected", replace(STARTED, sequence=2, workflow="w-2", claim="another", outcome="Promoted"), 3),
    ],
)
def test_wait_judges_the_retrain_that_it_followed_whatever_came_after(
    sink: Sink, state: State, capsys: Output, ended: str, after: Retrain, code: int
) -> None:
    known(state, retrain=STARTED)
    looked = iter(range(100))
    before = LocalLedger.read

    def read(self: LocalLedger, name: str) -> Record | None:
        record = before(self, name)
        if next(looked) < 1 or record is None:
            return record
        end = Row(kind="Finished", reason=ended, message="as it went", first=NOW, last=NOW, workflow="w-1")
        return replace(record, status=replace(record.status, retrain=after, history=(end, HELD)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalLedger, "read", read)
        assert main.main(["send", "digits", "--url", sink.url, "--wait"]) == code
    assert capsys.readouterr().out.endswith(f"default/digits: retrain ended: {ended} (as it went)\n")


def test_wait_follows_a_retrain_whose_workflow_had_to_take_another_name(
    sink: Sink, state: State, capsys: Output
) -> None:
    renamed = replace(STARTED, sequence=2, workflow="w-2")
    over = replace(renamed, phase="Finished", outcome="Promoted")
    known(state, retrain=STARTED)
    looks = iter([STARTED, STARTED, renamed, over])
    before = LocalLedger.read

    def read(self: LocalLedger, name: str) -> Record | None:
        record = before(self, name)
        assert record is not None
        end = Row(kind="Finished", reason="Promoted", message="", first=NOW, last=NOW, workflow="w-2")
        return replace(record, status=replace(record.status, retrain=next(looks), history=(end,)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalLedger, "read", read)
        assert main.main(["send", "digits", "--url", sink.url, "--wait"]) == 0
    assert "w-2: Submitted" in capsys.readouterr().out


def test_a_person_refuses_an_accepted_model(state: State) -> None:
    known(state, retrain=STARTED)
    asked = {"type": "Suspend", "phase": "Running", "name": "approve", "templateName": "approve"}
    doc = {"metadata": {"name": "w-1"}, "spec": {}, "status": {"phase": "Running", "nodes": {"approve": asked}}}
    state.objects().create("Workflow", "w-1", doc, pending=True)
    assert main.main(["approve", "digits", "--reject", "it looks odd"]) == 0
    stored = state.objects().get("Workflow", "w-1")
    assert stored is not None
    node = stored.doc["status"]["nodes"]["approve"]
    assert node["phase"] == "Failed"
    assert node["message"].endswith(": it looks odd")
    assert node["message"].startswith("rejected by ")


def test_a_model_that_the_file_no_longer_names_goes_back_to_the_defaults(state: State) -> None:
    def policies(models: list[dict[str, object]]) -> dict[str, bool]:
        Stack(state, config.check({"models": models}, state.root), {})._set_policies()
        return {record.model: record.policy.suspend for record in state.records().records()}

    assert policies([{"model": "a", "suspend": True}, {"model": "b"}]) == {"a": True, "b": False}
    assert policies([{"model": "b", "suspend": True}]) == {"a": False, "b": True}


def test_a_request_loses_against_no_other_writer(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    known(state)
    before = LocalLedger.request
    others = iter([True, True, False])

    def request(self: LocalLedger, name: str, token: str, by: str, why: str) -> None:
        if next(others):
            raise Conflict("somebody else wrote")
        before(self, name, token, by, why)

    monkeypatch.setattr(LocalLedger, "request", request)
    token = state.request("digits.default", "why")
    record = state.records().read("digits.default")
    assert record is not None
    assert record.request is not None
    assert record.request.token == token


# --- models, why, approve ----------------------------------------------------------------------------------------


def test_models_and_why_are_read_by_people_and_by_scripts(state: State, capsys: Output) -> None:
    known(state, history=(Row(kind="Rejected", reason="BadAlert", message="\x1b[2J", first=NOW, last=NOW),))
    for arguments in (["models"], ["why", "digits"]):
        assert main.main(arguments) == 0
        said = capsys.readouterr().out
        assert "digits" in said
        assert all(line.isprintable() for line in said.splitlines())
        assert main.main([*arguments, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found[0] if isinstance(found, list) else found)["name"] == "digits.default"


def test_without_models_the_list_is_empty(capsys: Output) -> None:
    assert main.main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("arguments", [["why", "x"], ["why", "x", "--json"], ["retrain", "x", "--why", "y"],
                                       ["approve", "x"]])  # fmt: skip
def test_an_unknown_model_is_bad_data(arguments: list[str], capsys: Output) -> None:
    assert main.main(arguments) == 65
    assert "no model x is known" in capsys.readouterr().err


def test_there_is_nothing_to_approve_without_a_retrain(state: State, capsys: Output) -> None:
    known(state)
    assert main.main(["approve", "digits"]) == 65
    assert "no retrain of digits is in flight" in capsys.readouterr().err


# --- verify ------------------------------------------------------------------------------------------------------


class OneVersion:
    """A registry that knows one version."""

    def __init__(self) -> None:
        self.aliases: list[tuple[str, str, str]] = []

    def register(self, *_: object) -> str:
        return "1"

    def versions(self, _: str) -> Mapping[str, Mapping[str, str]]:
        return {"1": {}}

    def tag(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        pass

    def aliased(self, *_: str) -> str:
        return ""

    def alias(self, name: str, alias: str, version: str) -> None:
        self.aliases.append((name, alias, version))


@pytest.fixture
def signed(tmp_path: Path) -> tuple[World, Path]:
    """A world with a package that is the champion, and the package's folder."""
    (tmp_path / "signing").mkdir()
    world = World(tmp_path / "signing")
    package = world.signed(world.make_model())
    world.promoted(package.tar_sha256, OneVersion())
    return world, world.folder(package.tar_sha256)


def test_a_good_package_is_verified_and_extracted(signed: tuple[World, Path], tmp_path: Path, capsys: Output) -> None:
    world, folder = signed
    arguments = ["verify", str(folder), "--keys", str(world.trusted_dir), "--model", "digits"]
    arguments += ["--environment", "default", "--pointer", str(world.pointer_file()), "--min-serial", "1"]
    assert main.main([*arguments, "--extract", str(tmp_path / "out")]) == 0
    assert "every byte verified" in capsys.readouterr().out
    assert (tmp_path / "out" / "MLmodel").exists()
    assert main.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"verified": True, "faults": []}


def test_a_flipped_byte_is_named_and_nothing_is_extracted(
    signed: tuple[World, Path], tmp_path: Path, capsys: Output
) -> None:
    world, folder = signed
    tar = folder / "model.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(data)
    arguments = ["verify", str(folder), "--keys", str(world.trusted_dir), "--extract", str(tmp_path / "out")]
    assert main.main(arguments) == 76
    said = capsys.readouterr().out
    assert "is NOT what it claims to be" in said
    assert "model.tar" in said
    assert not (tmp_path / "out").exists()
    assert main.main([*arguments, "--json"]) == 76
    assert json.loads(capsys.readouterr().out)["verified"] is False


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [(["--model", "other"], "model"), (["--environment", "prod"], "environment"), (["--min-serial", "2"], "serial")],
)
def test_another_model_environment_or_time_is_refused(
    signed: tuple[World, Path], arguments: list[str], fault: str, capsys: Output
) -> None:
    world, folder = signed
    given = ["--keys", str(world.trusted_dir), "--pointer", str(world.pointer_file())]
    assert main.main(["verify", str(folder), *given, *arguments]) == 76
    assert fault in capsys.readouterr().out


def test_nobodys_key_verifies_nothing(signed: tuple[World, Path], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert main.main(["verify", str(signed[1]), "--keys", str(tmp_path / "none")]) != 0
    assert pointer.unseal(signed[0].pointer_file().read_bytes(), signed[0].trusted).serial == 1


# --- adopt -------------------------------------------------------------------------------------------------------


def test_an_adopted_model_gets_the_alias_that_its_owner_chose(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = OneVersion()
    monkeypatch.setattr(adoption, "MlflowRegistry", lambda _uri: registry)
    state.addresses.write_text(json.dumps({"mlflow": "http://127.0.0.1:9"}))
    LocalLedger(state.objects(), lambda: "uid").set_spec("default", "digits", {"alias": "serving"}, NOW)
    model = World(tmp_path).make_model()
    assert main.main(["adopt", "digits", str(model)]) == 0
    assert main.main(["adopt", "digits", str(model), "--environment", "prod"]) == 0
    assert registry.aliases == [("digits", "serving", "1"), ("digits", "champion-prod", "1")]


# --- up ----------------------------------------------------------------------------------------------------------


def test_up_tells_each_new_row_once(state: State, capsys: Output) -> None:
    row = Row(kind="Hold", reason="Cooldown", message="\x1b[2J", first=NOW, last=NOW)
    known(state, history=(row,))
    told: dict[str, datetime] = {}
    main._tell(state, told, quiet=True)
    assert capsys.readouterr().out == ""
    ledger = state.records()
    record = ledger.read("digits.default")
    assert record is not None
    later = NOW + timedelta(minutes=5)
    later_row = Row(kind="Submitted", reason="Drift", message="", first=later, last=later)
    ledger.write(record, Status(history=(row, later_row)), pending=False)
    main._tell(state, told)
    main._tell(state, told)
    assert capsys.readouterr().out == "12:05:00  default/digits  retrain submitted: Drift  \n"


@pytest.fixture
def idle_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A configuration of a stack whose parts do nothing, and never become ready."""
    monkeypatch.setattr(Stack, "_mlflow", lambda self: self._spawn("mlflow", ["sleep", "60"], {}))
    monkeypatch.setattr(Stack, "_function", lambda self, name, *_: self._spawn(name, ["sleep", "60"], {}))
    path = tmp_path / "aegis.yaml"
    path.write_text(json.dumps({"ports": dict(zip(config.PORTS, free_ports(3), strict=True))}))
    return path


def test_ctrl_c_while_the_parts_start_ends_them(
    idle_parts: Path, state: State, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(stack, "READY_WITHIN_S", 60.0)
    wait_ready = Stack._wait_ready

    def interrupt_first(self: Stack, name: str, path: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait_ready(self, name, path)

    monkeypatch.setattr(Stack, "_wait_ready", interrupt_first)
    began = time.monotonic()
    assert main.main(["up", "--config", str(idle_parts)]) == 0
    assert time.monotonic() - began < 60  # the first part's wait was not sat out
    said = capsys.readouterr().out
    assert said.endswith("Stopping ...\n")
    assert "Ready." not in said
    assert not state.addresses.exists()


def test_a_part_that_does_not_become_ready_is_named(
    idle_parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(stack, "READY_WITHIN_S", 0.2)
    assert main.main(["up", "--config", str(idle_parts)]) == 75
    assert "trigger did not become ready" in capsys.readouterr().err


@pytest.mark.parametrize("allowed", [False, True])
def test_pickles_are_for_the_file_to_allow(state: State, allowed: bool) -> None:
    settings = config.check({"allowPickle": allowed} if allowed else {}, state.root)
    steps = Stack(state, settings, {})._runner().config["aegis-steps"]
    assert steps["AEGIS_ALLOW_PICKLE"] == str(allowed).lower()
