"""The step fetch: what it leaves for the trainer, and what it says when it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from aegis.errors import Conflict
from aegis.storage import FileStore
from tests.train_model import datasets
from tests.train_model.world import World

OLD, NEW, TEST = datasets.digits()


def about(world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((world.root / "pod" / "train" / "dataset.json").read_text())
    return found


def rows(world: World) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(world.root / "pod" / "train" / "data.npz") as data:
        return dict(data)


def frame(seed: int, count: int = 400, **columns: Any) -> pd.DataFrame:
    """A table whose label is a quantity."""
    rng = np.random.default_rng(seed)
    found = pd.DataFrame({"a": rng.normal(size=count), "b": rng.normal(size=count)} | columns)
    return found.assign(label=2 * found["a"] - found["b"] + 0.1)


def save(path: Path, table: pd.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)


def crown(world: World, *sources: str, task: str = "") -> None:
    """A champion that learned from these folders below data/. Nothing here ever loads it."""
    model = world.root / "champion"
    model.mkdir()
    (model / "MLmodel").write_text(f"flavors: {{}}\n# {task}\n")
    record = {"sources": [{"uri": world.uri(f"data/{name}"), "digest": ""} for name in sources]}
    (model / "aegis_dataset.json").write_text(json.dumps(record))
    world.crown(model)


def test_a_regression_has_no_classes_and_its_labels_are_quantities(world: World) -> None:
    save(world.root / "data" / "new" / "x.parquet", frame(0))
    world.settings = {"trainer": {"task": "regression"}}
    done = world.call("fetch")
    assert done.code == 0, done.text
    assert (about(world)["task"], about(world)["classes"], about(world)["columns"]) == ("regression", [], ["a", "b"])
    data = rows(world)
    assert data["y"].dtype == np.float64
    np.testing.assert_allclose(data["y"], 2 * data["X"][:, 0] - data["X"][:, 1] + 0.1)


def test_quantities_without_the_word_regression_are_refused_with_it(world: World) -> None:
    save(world.root / "data" / "new" / "x.csv", frame(0))
    done = world.call("fetch")
    assert (done.code, done.out["outcome"]) == (65, "BadData")
    assert "spec.trainer.task: regression" in done.out["explanation"]


def test_everything_that_is_wrong_with_new_old_and_evaluation_data_is_said_at_once(world: World) -> None:
    good = frame(0).round()
    save(world.root / "data" / "old" / "x.csv", good)
    save(
        world.root / "data" / "new" / "x.csv",
        good.assign(a=np.where(good.index < 9, np.nan, good["a"])).drop(columns="b"),
    )
    save(world.root / "data" / "judge" / "x.csv", good.head(20).drop(columns="b"))
    world.env["AEGIS_EVALUATION_URI"] = world.uri("data/judge")
    crown(world, "old")
    done = world.call("fetch")
    assert done.code == 65
    said = done.out["explanation"]
    for fault in (
        "data/judge rows: 20, at least 50",
        "data/new missing values: 1 columns (a), up to 2.25% of a column",
        "data/old form: the new data lacks b and has nothing besides",
    ):
        assert fault in said


def test_unreadable_new_data_hides_nothing_of_the_evaluation_data(world: World) -> None:
    datasets.save_npz(world.root / "data" / "judge" / "x.npz", datasets.Digits(TEST.features[:5], TEST.labels[:5]))
    (world.root / "data" / "new").mkdir()
    (world.root / "data" / "new" / "x.csv").write_text("a,b\n1,2\n")
    world.env["AEGIS_EVALUATION_URI"] = world.uri("data/judge")
    done = world.call("fetch")
    assert (done.code, done.out["outcome"]) == (65, "BadData:NoLabels")
    assert "x.csv has no column label" in done.out["explanation"]
    assert "data/judge rows: 5, at least 50" in done.out["explanation"]


def test_a_replay_trains_on_the_new_rows_and_as_many_old_ones(world: World) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("old", 2000), ("new", 300)):
        (world.root / "data" / name).mkdir(parents=True)
        np.savez(world.root / "data" / name / "x.npz", X=rng.normal(size=(size, 8)), y=np.arange(size) % 3)
    crown(world, "old")
    world.settings = {"trainer": {"data": "replay"}}
    done = world.call("fetch")
    assert done.code == 0, done.text
    counts = np.bincount(rows(world)["source"])
    assert counts[0] == counts[1]
    assert 200 < counts[1] < 300  # a fifth judges
    first = rows(world)["X"]
    world.call("fetch")
    np.testing.assert_array_equal(rows(world)["X"], first)


def test_rows_of_the_evaluation_set_are_left_out_and_counted(world: World) -> None:
    datasets.save_npz(world.root / "data" / "new" / "x.npz", OLD + TEST)
    datasets.save_npz(world.root / "data" / "judge" / "x.npz", TEST)
    world.env["AEGIS_EVALUATION_URI"] = world.uri("data/judge")
    done = world.call("fetch")
    assert done.code == 0, done.text
    assert "597 rows are in the evaluation set too and were left out" in done.text
    assert (about(world)["rows"], about(world)["held_out"]) == (700, 597)
    datasets.save_npz(world.root / "data" / "new" / "x.npz", TEST)
    done = world.call("fetch")
    assert done.code == 65
    assert "too little is left" in done.out["explanation"]


def test_what_drifted_is_told_for_people_to_look_at(world: World) -> None:
    datasets.save_npz(world.root / "data" / "old" / "x.npz", OLD)
    datasets.save_npz(world.root / "data" / "new" / "x.npz", datasets.drifted(NEW, 0.3, 1))
    assert world.call("fetch").code == 0
    assert about(world)["drifted"] == []  # nothing is known of the past
    crown(world, "old")
    assert world.call("fetch").code == 0
    found = about(world)["drifted"]
    assert found[0]["name"] in ("brightness", "contrast", "sharpness")
    assert found[0].keys() == {"name", "distance", "low", "high", "old", "new"}


def test_images_in_folders_are_trained_on_and_pinned_file_by_file(world: World) -> None:
    datasets.save_images(world.root / "data" / "new", datasets.Digits(OLD.features[:300], OLD.labels[:300]))
    done = world.call("fetch")
    assert done.code == 0, done.text
    assert (about(world)["task"], about(world)["shape"], about(world)["classes"]) == ("image", [8, 8], list(range(10)))
    [source] = json.loads((world.root / "pod" / "train" / "manifest.json").read_text())
    assert len(source["files"]) == 300
    assert all(re.fullmatch("[0-9a-f]{64}", file["sha256"]) for file in source["files"])


def test_data_that_changes_while_it_is_read_is_read_again_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.save_npz(world.root / "data" / "new" / "x.npz", OLD)
    listed: Callable[[FileStore], Any] = FileStore.list

    def then_replaced(store: FileStore) -> Any:
        entries = listed(store)
        datasets.save_npz(world.root / "data" / "new" / "x.npz", datasets.permuted(OLD, 1))  # of the same size
        return entries

    monkeypatch.setattr(FileStore, "list", then_replaced)
    done = world.call("fetch")
    assert done.code == Conflict.exit_code
    assert "changed while it was read" in done.out["explanation"]
    assert "outcome" not in done.out
