"""fetch, train and gate as processes, on real data that drifts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrain_trigger import workflow
from retrain_trigger.model import Policy, Record, Retrain, Status
from tests.storage import servers
from tests.support import free_port
from tests.train_model import datasets
from tests.train_model.datasets import Digits
from tests.train_model.world import SOURCES, World
from train_model import child, gate
from train_model.step import run

OLD, NEW, TEST = datasets.digits()
DRIFTED = datasets.drifted(NEW, 0.3, seed=1)
JUDGES = datasets.drifted(TEST, 0.3, seed=2)


def prepare(world: World, new: Digits, *, evaluation: bool = True) -> None:
    """Old data, new data and an evaluation set on disk."""
    datasets.save_npz(world.root / "data" / "old" / "x.npz", OLD)
    datasets.save_npz(world.root / "data" / "new" / "x.npz", new)
    if evaluation:
        datasets.judge(world.root / "data" / "judge" / "x.npz", TEST, JUDGES)
        world.env["AEGIS_EVALUATION_URI"] = world.uri("data/judge")


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory, database: str) -> Path:
    """A model trained by our own steps on the old data."""
    world = World(tmp_path_factory.mktemp("champion"), database, uid="uid-champion")
    prepare(world, OLD)
    for step in ("fetch", "train"):
        done = world.call(step)
        assert done.code == 0, done.text
    # The data it names must be where the tests' worlds have theirs: they copy the old data there.
    return world.root / "out" / "model"


def enthrone(world: World, champion: Path) -> str:
    """The champion, remembering this world's copy of the old data; its tar digest."""
    own = world.root / "champion"
    shutil.copytree(champion, own)
    record = json.loads((own / "aegis_dataset.json").read_text())
    record["sources"][0]["uri"] = world.uri("data/old")
    (own / "aegis_dataset.json").write_text(json.dumps(record))
    return world.crown(own).tar_sha256


def test_a_retrain_of_an_adopted_model_learns_from_what_its_adopter_named(world: World, champion: Path) -> None:
    prepare(world, DRIFTED)
    own = world.root / "champion"
    shutil.copytree(champion, own)
    (own / "aegis_dataset.json").unlink()
    world.crown(own, dataset_uri=world.uri("data/old"))
    assert world.call("fetch").code == 0
    about = json.loads((world.root / "pod" / "train" / "dataset.json").read_text())
    assert [s["uri"] for s in about["sources"]] == [world.uri("data/old"), world.uri("data/new")]


def test_trained_on_old_and_new_the_challenger_beats_the_fallen_champion(world: World, champion: Path) -> None:
    prepare(world, DRIFTED)
    tar = enthrone(world, champion)
    end = [world.run(step) for step in ("fetch", "train", "gate")][-1]
    assert (end.code, end.out["verdict"], end.out["outcome"]) == (0, "accept", "Accepted"), end.text
    assert end.out["champion"] == f"{tar}@1"
    assert "slice drifted +" in end.out["explanation"]
    assert "on 1,194 rows (p = " in end.out["explanation"]
    trained = json.loads((world.root / "out" / "model" / "aegis_dataset.json").read_text())
    assert [s["uri"] for s in trained["sources"]] == [world.uri("data/old"), world.uri("data/new")]
    assert (world.root / "pod" / "champion" / "MLmodel").is_file()

    # The same again is not trained again, once it was rejected.
    world.env["AEGIS_LAST_INPUTS"] = end.out["inputs"]
    shutil.rmtree(world.root / "out")
    assert world.run("fetch").code == 0
    again = world.run("train")
    assert (again.code, again.out["status"], again.out["outcome"]) == (0, "unchanged", "Rejected:Unchanged"), again.text
    assert again.out["inputs"] == end.out["inputs"]
    assert not (world.root / "out" / "model").exists()


def ordered(world: World, sequence: int, inputs: str | None) -> None:
    """What the trigger orders for this retrain of a model whose last one was rejected with these inputs."""
    policy = Policy(trainer={"params": {"iterations": 5}})
    record = Record(
        name="digits.test", uid="u", version="1", environment="test", model="digits", policy=policy, status=Status()
    )
    then = datetime(2026, 3, 4, tzinfo=UTC)
    retrain = Retrain(
        sequence=sequence, workflow=f"aegis-digits-{sequence}", claim="c", phase="Claimed", first_claimed_at=then,
        claimed_at=then, dataset_uri=world.uri("data/new"), inputs=inputs,
    )  # fmt: skip
    given = workflow.manifest(record, retrain, "aegis")["spec"]["arguments"]["parameters"]
    values = {parameter["name"]: parameter["value"] for parameter in given}
    for name in ("settings", "event", "last-inputs", "dataset-uri"):
        world.env[f"AEGIS_{name.upper().replace('-', '_')}"] = values[name]
    world.uid = f"{world.uid}-{sequence}"
    shutil.rmtree(world.root / "out", ignore_errors=True)


def test_the_next_retrain_on_the_same_data_ends_before_it_trains(world: World) -> None:
    prepare(world, OLD)
    ordered(world, 1, None)
    assert world.call("fetch").code == 0
    first = world.call("train")
    assert first.out["status"] == "trained", first.text
    ordered(world, 2, first.out["inputs"])
    assert world.call("fetch").code == 0
    second = world.call("train")
    assert (second.out["status"], second.out["outcome"]) == ("unchanged", "Rejected:Unchanged"), second.text
    # Other data is another attempt.
    datasets.save_npz(world.root / "data" / "new" / "more.npz", NEW)
    ordered(world, 3, second.out["inputs"])
    assert world.call("fetch").code == 0
    third = world.call("train")
    assert third.out.get("status") == "trained", third.text


def test_trained_on_the_new_alone_it_forgets_and_is_rejected(world: World, champion: Path) -> None:
    prepare(world, DRIFTED)
    enthrone(world, champion)
    world.settings = {"trainer": {"data": "new"}}
    end = world.retrain()
    assert (end.code, end.out["verdict"], end.out["outcome"]) == (0, "reject", "Rejected:SliceHarmed"), end.text
    assert "slice reference lost too much" in end.out["explanation"]


def test_poisoned_labels_are_rejected(world: World, champion: Path) -> None:
    prepare(world, datasets.permuted(DRIFTED, seed=3))
    enthrone(world, champion)
    end = world.retrain()
    assert (end.code, end.out["verdict"]) == (0, "reject"), end.text


def test_without_an_evaluation_set_held_out_rows_judge_and_it_is_said(world: World, champion: Path) -> None:
    prepare(world, DRIFTED, evaluation=False)
    enthrone(world, champion)
    world.settings = {"trainer": {"data": "new"}}
    end = world.retrain()
    assert end.out["verdict"] == "reject"
    assert "slice old data lost too much" in end.out["explanation"]
    assert "weaker than an evaluation set" in end.out["explanation"]
    assert "the champion once learned from some of them" in end.out["explanation"]


@pytest.mark.parametrize("how", ["gone", "corrupt", "not allowed any more"])
def test_without_an_evaluation_set_a_model_whose_old_data_cannot_be_had_is_rejected(
    world: World, champion: Path, how: str
) -> None:
    prepare(world, DRIFTED, evaluation=False)
    enthrone(world, champion)
    old = world.root / "data" / "old" / "x.npz"
    if how == "gone":
        old.unlink()
    elif how == "corrupt":
        old.write_bytes(b"PK")
    else:
        world.env["AEGIS_DATASET_PREFIXES"] = world.uri("data/new")
    world.settings = {"gate": {"minRows": 50}}
    end = world.retrain()
    # It is right in nearly all of the new rows, so nothing but this speaks against it.
    assert (end.out["verdict"], end.out["outcome"]) == ("reject", "Rejected:OldDataLost"), end.text
    assert end.out["explanation"].startswith(
        "old knowledge cannot be judged: set evaluationUri, or bring the data back;"
    )
    assert "old data left out" in end.out["explanation"]

    # With the owner's own evaluation set, that is what it costs.
    datasets.judge(world.root / "data" / "new" / "judge" / "x.npz", JUDGES, JUDGES)
    world.env["AEGIS_EVALUATION_URI"] = world.uri("data/new/judge")
    assert world.call("gate").out["verdict"] == "accept"


def test_a_champion_of_which_nobody_knows_what_it_learned_is_said_to_be_one(world: World, champion: Path) -> None:
    prepare(world, DRIFTED, evaluation=False)
    own = world.root / "champion"
    shutil.copytree(champion, own)
    (own / "aegis_dataset.json").unlink()
    world.crown(own)
    assert "nothing says what the champion learned from" in world.retrain().out["explanation"]


def test_a_champion_that_was_tampered_with_stops_fetch_and_gate(world: World, champion: Path) -> None:
    prepare(world, DRIFTED)
    tar = enthrone(world, champion)
    package = world.root / "models" / "packages" / "test" / "digits" / tar / "model.tar"
    package.write_bytes(package.read_bytes()[:-1] + b"x")
    done = world.call("fetch")
    assert (done.code, done.out["outcome"]) == (76, "Failed:Unverified"), done.text
    shutil.copytree(champion, world.root / "out" / "model")
    assert world.call("gate").code == 76


def test_a_table_is_learned_by_boosted_trees_from_csv(world: World) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3))
    labels = np.where(x[:, 0] * x[:, 1] > 0, "yes", "no")
    lines = [f"{a},{b},{c},{label}" for (a, b, c), label in zip(x, labels, strict=True)]
    (world.root / "data" / "new").mkdir(parents=True)
    (world.root / "data" / "new" / "x.csv").write_text("a,b,c,target\n" + "\n".join(lines))
    end = world.retrain()
    assert end.out["verdict"] == "accept", end.text
    with zipfile.ZipFile(world.root / "out" / "model" / "model.skops") as archive:
        assert b"HistGradientBoostingClassifier" in archive.read("schema.json")


def test_cifar_batches_are_read_from_s3_through_the_standard_variables(world: World) -> None:
    with servers.s3("my-staging-bucket") as env:
        from aegis.storage import open_store

        store = open_store("s3://my-staging-bucket/cifar", env=env)
        store.create("data_batch_1.bin", datasets.cifar_batch(OLD))
        store.create("data_batch_2.bin", datasets.cifar_batch(NEW))
        world.env |= dict(env) | {
            "AEGIS_DATASET_URI": "s3://my-staging-bucket/cifar/",
            "AEGIS_DATASET_PREFIXES": "s3://my-staging-bucket/",
        }
        world.settings = {"trainer": {"params": {"iterations": 5}}}
        end = world.retrain()
    assert end.out["verdict"] == "accept", end.text
    about = json.loads((world.root / "pod" / "train" / "dataset.json").read_text())
    assert (about["shape"], about["task"]) == ([3, 32, 32], "image")


def weights(model: Path) -> list[Any]:
    import skops.io

    network = skops.io.load(
        model / "model.skops", trusted=["sklearn.neural_network._stochastic_optimizers.AdamOptimizer"]
    )[-1]
    return [layer.tobytes() for layer in (*network.coefs_, *network.intercepts_)]


def test_the_same_inputs_and_seed_give_the_same_weights(world: World) -> None:
    prepare(world, OLD)
    found = []
    for seed in (0, 0, 1):
        world.settings, world.uid = {"seed": seed}, f"{world.uid}-{seed}"
        assert world.call("fetch").code == 0
        assert world.call("train").code == 0
        found.append(weights(world.root / "out" / "model"))
    assert found[0] == found[1] != found[2]


# --- bad data and bad settings: an exit code, one line, never a traceback


@pytest.mark.parametrize(
    ("env", "code", "said"),
    [
        ({"AEGIS_DATASET_URI": ""}, 65, "set spec.datasetUri"),
        ({"AEGIS_DATASET_PREFIXES": ""}, 65, "allowed"),
        ({"AEGIS_DATASET_URI": "file:///etc/../x"}, 65, "not below an allowed"),
        ({"AEGIS_SETTINGS": "e30"}, 64, "AEGIS_SETTINGS"),
        ({"AEGIS_MODELS_URI": ""}, 64, "AEGIS_MODELS_URI"),
    ],
)
def test_a_wrong_order_is_refused_by_its_exit_code(world: World, env: dict[str, str], code: int, said: str) -> None:
    world.env |= env
    done = world.run("fetch")
    assert (done.code, done.out["outcome"].partition(":")[0]) == (code, "BadData")
    assert said in done.out["failure"]
    assert done.text.splitlines()[-1] == done.out["failure"]
    assert done.out["failure"].startswith(done.out["outcome"] + ": ")  # all that a Workflow knows of an init container


def test_data_without_labels_is_named_so_that_a_person_is_asked(world: World) -> None:
    (world.root / "data" / "new").mkdir(parents=True)
    np.savez(world.root / "data" / "new" / "x.npz", X=OLD.features)
    done = world.run("fetch")
    assert (done.code, done.out["outcome"]) == (65, "BadData:NoLabels")
    assert "label" in done.out["explanation"]


# --- the trainer of somebody's own

TRAINERS = """
import os, pathlib, time
from train_model.defaults import default

def good(source, target):
    secrets = [n for n in os.environ if n.startswith(("AWS_", "GOOGLE_", "AEGIS_"))]
    assert not secrets, secrets
    assert os.environ["MLFLOW_RUN_ID"] and os.environ["OMP_NUM_THREADS"] == "1"
    default(source, target)

def crashes(source, target):
    raise ValueError("no luck")

def hangs(source, target):
    time.sleep(600)

def empty(source, target):
    pass

def eats(source, target):
    block = b"x" * (600 << 20)

def fills(source, target):
    for n in range(60):
        (target / str(n)).write_bytes(os.urandom(1 << 20))
    time.sleep(600)

def looks(source, target):
    # for rows that judge, and for ways to write to what is not its own
    seen = " ".join(str(path) for path in source.rglob("*"))
    assert "judge" not in seen, seen
    found = []
    for path in (source / "params.json", target.parents[1] / "data" / "judge" / "x.npz", pathlib.Path("/tmp/x")):
        try:
            path.open("r+b" if path.exists() else "wb").close()
            found.append(path)
        except OSError:
            pass
    assert not found, found
    default(source, target)

def links(source, target):
    (target / "model").mkdir()
    (target / "model" / "MLmodel").write_text("flavors: {}")
    (target / "model" / "passwd").symlink_to("/etc/passwd")
"""


@pytest.mark.parametrize(
    ("function", "outcome", "said"),
    [
        ("good", "Trained", "700 rows"),
        ("crashes", "TrainerFailed:Crashed", "ValueError: no luck"),
        ("hangs", "TrainerFailed:Timeout", "did not end within 2 s"),
        ("empty", "TrainerFailed:BadModel", "OUT/model is no folder"),
        ("links", "TrainerFailed:BadModel", "passwd is no regular file"),
        ("eats", "TrainerFailed:OutOfMemory", "MemoryError"),
        ("fills", "TrainerFailed:DiskFull", "more than 30 MiB on disk"),
        ("looks", "Trained", "700 rows"),
    ],
)
def test_a_trainer_of_ones_own_has_no_secrets_and_ends_bounded(
    world: World, function: str, outcome: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(child, "memory_limit", lambda: 500 << 20)
    prepare(world, OLD)
    (world.root / "own").mkdir()
    (world.root / "own" / "mine.py").write_text(TRAINERS)
    world.env |= {"AWS_SECRET_ACCESS_KEY": "s3cr3t", "GOOGLE_APPLICATION_CREDENTIALS": "/x"}
    world.env["PYTHONPATH"] = f"{world.environment()['PYTHONPATH']}:{world.root / 'own'}"
    world.settings = {"trainer": {"module": f"mine:{function}"}}
    if function == "hangs":
        world.settings["trainer"]["timeoutSeconds"] = 2
    if function == "fills":
        world.settings["trainer"]["diskMib"] = 30
    assert world.call("fetch").code == 0
    done = world.call("train")
    assert (done.code, done.out["outcome"]) == (0 if outcome == "Trained" else 70, outcome), done.text
    assert said in done.out["explanation"]
    client = MlflowClient(world.tracking)
    place = client.get_experiment_by_name("test/digits")
    assert place is not None
    (run,) = client.search_runs([place.experiment_id], f"tags.`aegis.workflow_uid` = '{world.uid}'")
    if outcome != "Trained":
        assert (run.info.status, run.data.tags["aegis.outcome"]) == ("FAILED", outcome)
        assert said in run.data.tags["aegis.explanation"]


# --- MLflow


def test_mlflow_down_is_a_temporary_failure(world: World) -> None:
    prepare(world, OLD)
    assert world.run("fetch").code == 0
    world.env |= {
        "MLFLOW_TRACKING_URI": f"http://aegis:hunter2@127.0.0.1:{free_port()}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }
    done = world.run("train")
    assert done.code == 75, done.text
    assert "outcome" not in done.out
    assert "://***@127.0.0.1" in done.out["failure"]
    assert "hunter2" not in done.text + "".join(done.out.values())


def test_errors_are_told_without_the_secrets_that_they_quote(world: World) -> None:
    world.env["AWS_SECRET_ACCESS_KEY"] = "hunter2-aws"
    for uri in ("ftp://user:hunter2@host/x", "ftp://user:p@hunter2@host/x", "ftp://host/hunter2-aws"):
        world.env["AEGIS_MODELS_URI"] = uri
        done = world.call("fetch")
        assert done.code == 65
        assert "***" in done.out["failure"]
        assert "hunter2" not in done.text + "".join(done.out.values())


def test_an_unexpected_error_tells_its_kind_and_place_but_not_its_text(world: World) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("hunter2")

    code = run("fetch", fail, world.environment(), ())
    assert (code, set(world.outputs())) == (1, {"failure", "explanation"})
    assert world.outputs()["failure"].startswith("fetch: unexpected RuntimeError at test_steps.py:")


def test_no_secret_that_a_trainer_says_gets_further(world: World) -> None:
    from mlflow import MlflowClient

    prepare(world, OLD)
    (world.root / "own").mkdir()
    text = "import os\ndef quotes(source, target):\n    print(os.environ['MLFLOW_TRACKING_PASSWORD'], flush=True)\n"
    text += "    raise ValueError('POST https://aegis:hunter2@mlflow/ failed')\n"
    (world.root / "own" / "mine.py").write_text(text)
    world.env |= {"PYTHONPATH": f"{SOURCES}:{world.root / 'own'}", "MLFLOW_TRACKING_PASSWORD": "hunter2-secret"}
    world.settings = {"trainer": {"module": "mine:quotes"}}
    assert world.call("fetch").code == 0
    done = world.call("train")
    assert (done.code, done.out["outcome"]) == (70, "TrainerFailed:Crashed"), done.text
    client = MlflowClient(world.tracking)
    place = client.get_experiment_by_name("test/digits")
    assert place is not None
    [run] = client.search_runs([place.experiment_id], f"tags.`aegis.workflow_uid` = '{world.uid}'")
    assert "://***@mlflow/ failed" in run.data.tags["aegis.explanation"]
    assert "hunter2" not in done.text + "".join(done.out.values()) + str(run.data.tags)


def test_a_retry_resumes_the_one_run_that_tells_the_whole_story(world: World, server: str, champion: Path) -> None:
    from mlflow import MlflowClient

    prepare(world, DRIFTED)
    enthrone(world, champion)
    world.tracking = server
    world.settings = {"trainer": {"params": {"hidden": 32}}, "seed": 5}
    assert world.run("fetch").code == 0
    first, second = world.run("train"), world.run("train")
    assert (first.code, second.code) == (0, 0), first.text + second.text
    world.env["AEGIS_RUN_ID"] = second.out["run-id"]
    end = world.run("gate")
    assert end.out["verdict"] == "accept", end.text

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("test/digits")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == first.out["run-id"] == second.out["run-id"]
    assert run.info.status == "FINISHED"
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    assert tags["aegis.event_id"] == "ev-1"
    assert tags["aegis.decision"] == "<b>drift</b> of \ufffddigits\ufffd[2J"
    assert (tags["aegis.fingerprint"], tags["aegis.workflow_uid"]) == ("f1", world.uid)
    assert tags["aegis.model_digest"] == end.out["digest"]
    assert (params["seed"], params["trainer.hidden"], tags["aegis.inputs"]) == ("5", "32", first.out["inputs"])
    assert metrics["challenger_accuracy"] > metrics["champion_accuracy"]
    assert {"train_accuracy", "loss", "p_value", "slice_change/reference"} <= set(metrics)
    assert run.inputs is not None
    assert [i.dataset.name for i in run.inputs.dataset_inputs] == ["old", "new"]

    there = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"model_card.html", "model_card.md", "environment.txt", "slices.svg", "curve_1.svg"} <= there
    card = Path(client.download_artifacts(run.info.run_id, "model_card.html", str(world.root))).read_text()
    assert "&lt;b&gt;drift&lt;/b&gt;" in card
    assert "<b>" not in card
    assert "http" not in card


OWN_LOGS = """
import warnings
warnings.simplefilter("ignore")
import mlflow
import numpy as np
from sklearn.linear_model import LogisticRegression
from train_model.defaults import save

def fit(source, target):
    mlflow.sklearn.autolog(log_models=False)
    with np.load(source / "train" / "data.npz") as data:
        rows, labels = data["X"], data["y"]
    for step in range(3):
        mlflow.log_metric("own_loss", 3.0 - step, step=step)
    mlflow.log_param("own_param", "x")
    model = LogisticRegression(max_iter=50).fit(rows, labels)
    (target / "report").mkdir()
    (target / "report" / "page.html").write_text("<p>mine")
    save(model, rows, target / "model")
"""


def test_what_a_trainer_logs_itself_lands_in_the_attempt_s_run_autolog_too(world: World, server: str) -> None:
    from mlflow import MlflowClient

    prepare(world, OLD)
    (world.root / "own").mkdir()
    (world.root / "own" / "mine.py").write_text(OWN_LOGS)
    world.env["PYTHONPATH"] = f"{SOURCES}:{world.root / 'own'}"
    world.env["AEGIS_MODEL"] = "logs-itself"
    world.tracking = server
    world.settings = {"trainer": {"module": "mine:fit"}, "secret": "s3cret"}
    assert world.run("fetch").code == 0
    done = world.run("train")
    assert done.code == 0, done.text
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("test/logs-itself")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == done.out["run-id"]
    assert [m.value for m in client.get_metric_history(run.info.run_id, "own_loss")] == [3.0, 2.0, 1.0]
    assert {"own_param", "max_iter", "seed"} <= set(run.data.params)  # its own, autolog's, ours
    assert {"training_accuracy_score"} <= set(run.data.metrics)
    assert [item.path for item in client.list_artifacts(run.info.run_id, "report")] == ["report/page.html"]


# --- the children


def test_a_process_without_sockets_reaches_no_network_and_neither_do_its_children() -> None:
    code = (
        "import os, socket, sys\n"
        "from train_model.sandbox import no_sockets\n"
        "assert no_sockets()\n"
        "os.fork() and sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "try:\n    socket.socket()\nexcept PermissionError:\n    os._exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=servers.clean({"PYTHONPATH": SOURCES}), timeout=30, check=False
    )
    assert done.returncode == 7


def test_a_model_that_cannot_be_loaded_is_rejected_in_words(world: World) -> None:
    prepare(world, OLD)
    model = world.root / "out" / "model"
    model.mkdir(parents=True)
    (model / "MLmodel").write_text("flavors: {sklearn: {serialization_format: skops, pickled_model: ../../x}}")
    end = world.call("gate")
    assert (end.code, end.out["verdict"]) == (0, "reject"), end.text
    assert "the challenger cannot predict" in end.out["explanation"]


def test_a_model_that_hangs_ends_in_time_and_is_rejected(world: World) -> None:
    prepare(world, OLD)
    (world.root / "own").mkdir()
    (world.root / "own" / "hang.py").write_text("import time\ndef _load_pyfunc(path):\n    time.sleep(600)\n")
    world.env["PYTHONPATH"] = f"{SOURCES}:{world.root / 'own'}"
    model = world.root / "out" / "model"
    model.mkdir(parents=True)
    (model / "MLmodel").write_text("flavors: {python_function: {loader_module: hang}}")
    world.settings = {"gate": {"timeoutSeconds": 4}}
    world.env["MLFLOW_TRACKING_URI"] = ""
    end = world.call("gate")
    assert (end.code, end.out["verdict"]) == (0, "reject"), end.text
    assert "no answer in time" in end.out["explanation"]


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"nonsense", b'{"labels": [1]}', b'{"labels": 3}', b'{"error": "x"}', b"[" * 5000],
)
def test_an_answer_that_is_not_one_label_a_row_is_none(line: bytes) -> None:
    assert isinstance(gate.said(line, 2, "labels"), str)


def test_labels_are_compared_in_one_form() -> None:
    assert gate.texts([3, 3.0, "3", True, "a", 2.5]).tolist() == ["3", "3", "3", "True", "a", "2.5"]
