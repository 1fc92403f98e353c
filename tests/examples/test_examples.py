"""The trainers of docs/examples: by the check command, through the steps, and in a container of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hera.workflows.models import WorkflowTemplate as Argo
from mlflow.tracking import MlflowClient

from aegis_cli import main
from aegis_cli.workflow_template import parse
from tests.cluster.control_plane import KUBECTL
from tests.manifests.overlays import built, workflow_template
from tests.runner import conftest as runner
from tests.train_model import datasets
from tests.train_model.world import World
from train_model import trainer

from .conftest import EXAMPLES

OLD, _, TEST = datasets.digits()
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and SQLAlchemy's; who reads MLflow here is the test


@pytest.mark.parametrize("task", ["image", "table"])
def test_the_python_trainer_keeps_the_contract(
    task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES)
    code = main.main(["trainer", "check", "--module", "own_trainer:train", "--task", task, "--param", "epochs=20"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "predicts: challenger 9" in said
    assert "a second run gave the same predictions" in said
    assert "goes on from the checkpoint last.npz, and gives the same predictions in the end" in said
    assert said.endswith("breaches: 0, warnings: 0\n")


def trained(world: World, settings: dict[str, Any]) -> Any:
    """A retrain without a champion by that trainer; the gate's end, and the data of its run."""
    datasets.save_npz(world.root / "data" / "new" / "x.npz", OLD)
    datasets.save_npz(world.root / "data" / "judge" / "x.npz", TEST)
    world.env["AEGIS_EVALUATION_URI"] = world.uri("data/judge")
    world.settings = {"trainer": settings}
    end = world.retrain()
    assert (end.code, end.out["verdict"]) == (0, "accept"), end.text
    return MlflowClient(world.tracking)


def test_the_python_trainer_s_curve_and_metrics_stand_in_mlflow(world: World) -> None:
    client = trained(world, {"module": "own_trainer:train", "params": {"epochs": 20}})
    run = client.get_run(world.outputs()["run-id"])
    assert run.data.params["trainer"] == "own_trainer:train"
    assert run.data.metrics["train_accuracy"] > 0.9
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == list(range(20))


def test_the_shell_trainer_is_judged_as_any_other(world: World) -> None:
    client = trained(world, {"command": ["sh", str(EXAMPLES / "centroids.sh")]})
    assert client.get_run(world.outputs()["run-id"]).data.metrics["rows"] == len(OLD.labels)


@pytest.fixture(scope="module")
def template() -> Any:
    """The WorkflowTemplate of the example with a container."""
    found = copy.deepcopy(workflow_template(built(str(KUBECTL), "../examples/trainer-container")))
    del found["metadata"]["namespace"]  # of which one machine knows none
    return found


def test_the_container_comes_between_fetch_and_train_and_holds_no_credential(template: Any) -> None:
    assert Argo.model_validate(template).spec is not None
    parse(template)  # every reference in it leads somewhere
    train = next(t for t in template["spec"]["templates"] if t["name"] == "train")
    assert [c["name"] for c in train["initContainers"]] == ["fetch", "trainer"]
    own = train["initContainers"][1]
    assert "envFrom" not in own
    assert all("value" in variable for variable in own["env"])


def test_the_provenance_names_the_container_s_image(template: Any) -> None:
    sign = next(t for t in template["spec"]["templates"] if t["name"] == "sign")
    named = {v["name"]: v.get("value") for v in sign["container"]["env"]}
    assert named["AEGIS_TRAINER_IMAGE"] == "registry.example/churn-trainer:1"


def test_a_workflow_takes_the_model_that_the_container_left(template: Any, world: World, tmp_path: Path) -> None:
    """The template's train as the local runner runs it, with an example as the container's program."""
    datasets.save_npz(world.root / "data" / "new" / "x.npz", OLD)
    template = copy.deepcopy(template)
    spec = template["spec"]
    train = next(t for t in spec["templates"] if t["name"] == "train")
    own = train["initContainers"][1]
    # No path as a word or value: below a mount of the pod, such as /tmp, the runner would take it for the pod's.
    lines = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})",
        "from train_model.defaults import main",
        "sys.exit(main(['own_trainer:train', *sys.argv[1:]]))",
    )
    own["command"] = ["python", "-c", "; ".join(lines)]
    spec.update(entrypoint="train", templates=[train])
    del spec["onExit"]
    given = {p["name"]: "" for p in spec["arguments"]["parameters"]}
    given |= {"model": "digits", "environment": "test", "dataset-uri": world.uri("data/new")}
    config = {
        "AEGIS_MODELS_URI": world.uri("models"),
        "AEGIS_DATASET_PREFIXES": world.uri("data"),
        "MLFLOW_TRACKING_URI": world.tracking,
    }
    local = runner.World(tmp_path / "local", config={"aegis-steps": config, "aegis-trusted-keys": {}})
    local.home.mkdir()
    done = local.run(template, runner.row("w", given, of="aegis-retrain"))
    assert runner.phase(done) == "Succeeded", done["status"]
    found = runner.outputs(done["status"])
    assert found["outcome"] == "Trained"
    run = MlflowClient(world.tracking).get_run(found["run-id"])
    assert run.data.params["trainer"] == "container"
    assert run.data.metrics["train_accuracy"] > 0.9
    [model] = (local.home / "runs" / "w" / ".artifacts").glob("*/model")
    assert trainer.model_faults(model) == [
        "aegis_dataset.json and registered_model_meta are not the trainer's to write"
    ]
    assert yaml.safe_load((model / "MLmodel").read_text())["flavors"]["python_function"]["code"] == "code"
