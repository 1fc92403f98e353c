"""The attempt's run in a real MLflow server: one, nobody else's, and reached only with the right credentials."""

from __future__ import annotations

import base64
import http.client
import json
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import USAGE, Permanent, Temporary
from tests.train_model import datasets
from tests.train_model.world import World
from train_model import tracking
from train_model.attempt import Attempt

SECRET = "known to the steps alone"


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """MLflow is bounded through os.environ; here it does not try again."""
    before = dict(os.environ)
    os.environ.update(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT="10")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own; in a process of their own they only print
        yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def attempt(world: World, server: str) -> Attempt:
    """One of a model that nobody had before."""
    world.tracking, world.env["AEGIS_MODEL"] = server, world.root.name
    world.settings = {"secret": SECRET}
    return Attempt.from_env(world.environment())


def begin(attempt: Attempt) -> tracking.Run:
    return tracking.begin(attempt, tracking.identity(attempt))


def client(attempt: Attempt) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(attempt.tracking_uri)


def runs(attempt: Attempt) -> list[Any]:
    known = client(attempt)
    place = known.get_experiment_by_name(f"{attempt.environment}/{attempt.model}")
    return list(known.search_runs([place.experiment_id]))


def forge(attempt: Attempt, tags: dict[str, str]) -> str:
    """A run that somebody else makes, who says that it began long ago."""
    known = client(attempt)
    place = known.get_experiment_by_name(f"{attempt.environment}/{attempt.model}")
    place = place.experiment_id if place else known.create_experiment(f"{attempt.environment}/{attempt.model}")
    return str(known.create_run(place, start_time=1, tags=tags).info.run_id)


# --- one run, and ours


def test_a_retry_finds_the_run_of_its_attempt_and_another_attempt_does_not(attempt: Attempt) -> None:
    first = begin(attempt).run_id
    assert begin(attempt).run_id == first
    assert begin(replace(attempt, secret="of another attempt", workflow_uid="uid-next")).run_id != first
    assert len(runs(attempt)) == 2


def test_a_run_with_all_our_tags_is_not_adopted(attempt: Attempt) -> None:
    mine = begin(attempt).run_id
    [run] = runs(attempt)
    copied = {name: value for name, value in run.data.tags.items() if name.startswith("aegis.")}
    assert {tracking.UID, tracking.CLAIM, tracking.PROOF} <= set(copied)
    copy = forge(attempt, copied)
    assert begin(attempt).run_id == mine
    assert {run.info.run_id for run in runs(attempt)} == {mine, copy}, "a copy is somebody's own and stays"
    client(attempt).delete_run(mine)
    assert begin(attempt).run_id not in (mine, copy)


def test_a_run_that_names_our_workflow_first_is_not_adopted(attempt: Attempt) -> None:
    other = forge(attempt, {tracking.UID: attempt.workflow_uid})
    mine = begin(attempt).run_id
    assert mine != other
    assert begin(attempt).run_id == mine


def test_what_a_try_left_that_was_killed_before_it_gave_a_proof_is_deleted(attempt: Attempt) -> None:
    claim = tracking._mac(attempt, "claim")
    left = forge(attempt, {tracking.UID: attempt.workflow_uid, tracking.CLAIM: claim})
    mine = begin(attempt).run_id
    assert mine != left
    assert [run.info.run_id for run in runs(attempt)] == [mine]


def test_of_two_runs_with_a_proof_the_older_one_stays(attempt: Attempt) -> None:
    mine, known = begin(attempt).run_id, client(attempt)
    twin = forge(attempt, {tracking.UID: attempt.workflow_uid, tracking.CLAIM: tracking._mac(attempt, "claim")})
    known.set_tag(twin, tracking.PROOF, tracking._mac(attempt, twin))
    assert begin(attempt).run_id == twin
    assert [run.info.run_id for run in runs(attempt)] == [twin] != [mine]


def test_without_a_secret_the_workflow_alone_tells_whose_a_run_is(attempt: Attempt) -> None:
    attempt = replace(attempt, secret="")
    mine = begin(attempt).run_id
    assert begin(attempt).run_id == mine
    [run] = runs(attempt)
    assert not {tracking.CLAIM, tracking.PROOF} & set(run.data.tags)


def test_a_step_that_was_told_the_run_takes_it_without_asking(attempt: Attempt) -> None:
    assert begin(replace(attempt, run_id="r" * 32, tracking_uri="http://127.0.0.1:1")).run_id == "r" * 32


# --- what stands in it


def test_a_run_tells_its_environment_and_its_data_by_their_whole_digest(attempt: Attempt) -> None:
    import mlflow.data

    run, digest = begin(attempt), "sha256:" + "0123456789abcdef" * 4
    run.environment({"AEGIS_TRAINER_IMAGE": "registry/trainer@sha256:1"})
    for _ in range(2):
        run.dataset("file:///data/new/", digest)
        run.dataset("s3://bucket/old", digest.replace("0", "f"))
    [found] = runs(attempt)
    assert found.data.tags["aegis.image"] == "registry/trainer@sha256:1"
    assert found.data.tags["aegis.python"].startswith("3.")
    assert found.data.tags["aegis.platform"]
    known = client(attempt)
    packages = Path(known.download_artifacts(run.run_id, "environment.txt")).read_text().splitlines()
    assert any(line.startswith("mlflow") and "==" in line for line in packages)
    inputs = {entry.dataset.name: entry for entry in found.inputs.dataset_inputs}
    assert set(inputs) == {"new", "old"}
    assert {tag.key: tag.value for tag in inputs["new"].tags}["aegis.digest"] == digest
    places = [mlflow.data.get_source(inputs[name].dataset).to_dict() for name in ("old", "new")]
    assert places == [{"uri": "s3://bucket/old"}, {"uri": "file:///data/new/"}]


def test_a_curve_arrives_whole_and_once_however_long_it_is(attempt: Attempt) -> None:
    run, now = begin(attempt), int(time.time() * 1000)
    points = [("train/loss", 1 / (step + 1), step, now + step) for step in range(1700)]
    run.metrics(points)
    run.metrics(points[-1200:])
    run.metrics([])
    history = client(attempt).get_metric_history(run.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == [(step, value) for _, value, step, _ in points]
    assert run.curves() == {"train/loss": [(step, value) for _, value, step, _ in points]}


def test_of_a_trainer_that_logs_without_end_only_a_part_is_read(attempt: Attempt) -> None:
    run = begin(attempt)
    run.metrics([(f"loss{n}", 1.0, step, 1) for n in range(6) for step in range(500)])
    run.metrics([("loss0", 1.0, step, 1) for step in range(500, 2500)])
    run.metrics([("eval_rows", 1.0, 1, 1), ("eval_rows", 2.0, 2, 1), ("final_loss", 1.0, 0, 1)])
    curves = run.curves()
    assert list(curves) == ["loss0", "loss1", "loss2", "loss3"]
    assert len(curves["loss0"]) == 2000


def test_a_folder_becomes_artifacts(attempt: Attempt, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "a.txt").write_text("said")
    run = begin(attempt)
    run.folder(tmp_path / "report", "report")
    assert Path(client(attempt).download_artifacts(run.run_id, "report/a.txt")).read_text() == "said"


@given(st.text())
def test_whatever_a_metric_is_called_mlflow_takes_its_name(name: str) -> None:
    from mlflow.utils import validation

    validation._validate_metric_name(tracking.metric_name(name))  # type: ignore[no-untyped-call]  # MLflow's


def test_a_plain_name_stays() -> None:
    assert [tracking.metric_name(name) for name in ("val/loss", "top-5 acc.", "../../x", "", "a//b:c")] == [
        "val/loss", "top-5 acc.", "x", "_", "a/b_c",
    ]  # fmt: skip


# --- a server that lets only some in


class Guard:
    """A reverse proxy before MLflow that wants a header; `artifacts` alone may be shut."""

    def __init__(self, target: str, wanted: str) -> None:
        self.wanted, self.artifacts, self.answer = wanted, True, (401, b"who are you?")
        host = target.removeprefix("http://")
        guard = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                shut = not guard.artifacts and "/mlflow-artifacts/" in self.path
                if shut or self.headers.get("Authorization") != guard.wanted:
                    status, said, kind = *guard.answer, "text/plain"
                else:
                    kept = {name: value for name, value in self.headers.items() if name != "Host"}
                    behind = http.client.HTTPConnection(host, timeout=30)
                    behind.request(self.command, self.path, body, kept)
                    answer = behind.getresponse()
                    status, said, kind = answer.status, answer.read(), answer.headers["Content-Type"] or "text/plain"
                    behind.close()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}"

    @contextmanager
    def running(self) -> Iterator[Guard]:
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()


PASSWORD = "correct-horse-battery"
BASIC = "Basic " + base64.b64encode(f"aegis:{PASSWORD}".encode()).decode()
CREDENTIALS = {
    "basic": (BASIC, {"MLFLOW_TRACKING_USERNAME": "aegis", "MLFLOW_TRACKING_PASSWORD": PASSWORD}),
    "token": (f"Bearer {PASSWORD}", {"MLFLOW_TRACKING_TOKEN": PASSWORD}),
}


@pytest.fixture
def guard(server: str, request: pytest.FixtureRequest) -> Iterator[Guard]:
    with Guard(server, getattr(request, "param", BASIC)).running() as guard:
        yield guard


@pytest.mark.parametrize("guard", [BASIC, f"Bearer {PASSWORD}"], indirect=True, ids=["basic", "token"])
def test_behind_a_password_or_a_token_everything_arrives(attempt: Attempt, guard: Guard, tmp_path: Path) -> None:
    os.environ.update(next(env for wanted, env in CREDENTIALS.values() if wanted == guard.wanted))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "a.txt").write_text("said")
    run = begin(replace(attempt, tracking_uri=guard.uri))
    run.metrics([("loss", 1.0, 0, 1)])
    run.environment({})
    run.folder(tmp_path / "report")
    run.end("FINISHED")
    [found] = runs(attempt)
    assert (found.info.run_id, found.info.status) == (run.run_id, "FINISHED")
    known = {item.path for item in client(attempt).list_artifacts(run.run_id)}
    assert known == {"environment.txt", "a.txt"}


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_credentials_are_told_and_not_tried_again(attempt: Attempt, guard: Guard, status: int) -> None:
    os.environ.update(MLFLOW_TRACKING_USERNAME="aegis", MLFLOW_TRACKING_PASSWORD="wrong-horse-battery")
    guard.answer = (status, b"aegis:wrong-horse-battery is nobody")
    with pytest.raises(Permanent, match=r"does not let us in.*MLFLOW_TRACKING_PASSWORD") as caught:
        begin(replace(attempt, tracking_uri=guard.uri))
    assert caught.value.exit_code == USAGE
    assert "horse" not in str(caught.value)


def test_a_step_with_wrong_credentials_ends_and_says_no_secret(world: World, guard: Guard) -> None:
    datasets.save_npz(world.root / "data" / "new" / "x.npz", datasets.digits()[0])
    assert world.call("fetch").code == 0
    guard.answer = (401, b"wrong-horse-battery is no password")
    world.env |= {"MLFLOW_TRACKING_USERNAME": "aegis", "MLFLOW_TRACKING_PASSWORD": "wrong-horse-battery"}
    world.tracking = guard.uri
    done = world.run("train")
    assert done.code == USAGE, done.text
    assert "does not let us in" in done.out["failure"]
    assert "horse" not in done.text + json.dumps(dict(done.out))


@pytest.mark.parametrize(("status", "error"), [(403, Permanent), (413, Permanent), (429, Temporary), (502, Temporary)])
def test_artifacts_that_are_refused_are_told_apart_from_those_that_may_come_later(
    attempt: Attempt, guard: Guard, tmp_path: Path, status: int, error: type[Exception]
) -> None:
    os.environ.update(CREDENTIALS["basic"][1])
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "a.txt").write_text("said")
    run = begin(replace(attempt, tracking_uri=guard.uri))
    guard.artifacts, guard.answer = False, (status, b"no")
    with pytest.raises(error) as caught:
        run.folder(tmp_path / "report")
    assert PASSWORD not in str(caught.value)
    if status == 403:
        assert "does not let us in" in str(caught.value)
