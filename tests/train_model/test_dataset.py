"""What is fetched, held out, refused and remembered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import NotFound, Permanent
from tests.train_model import datasets
from tests.train_model.datasets import Digits
from train_model import dataset
from train_model.dataset import Source
from train_model.readers import Rows


def rows(features: np.ndarray[tuple[int, int]], labels: list[int]) -> Rows:
    return Rows(features, np.array(labels), np.full(len(labels), "", dtype="<U64"), (features.shape[1],))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path


def fetch(place: Path, name: str, prefix: str = "") -> dataset.Fetched:
    return dataset.fetch(f"file://{place / name}", [f"file://{place / prefix}"], {}, place / "tmp")


def test_a_folder_is_read_with_a_manifest_of_its_files_and_others_are_named(place: Path) -> None:
    part, new, _ = datasets.digits()
    datasets.save_npz(place / "d" / "1.npz", part)
    datasets.save_npz(place / "d" / "deep" / "2.npz", new)
    (place / "d" / "README.md").write_text("x")
    found = fetch(place, "d")
    assert len(found.rows) == 1200
    assert [line["path"] for line in found.manifest] == ["1.npz", "deep/2.npz"]
    assert found.ignored == ("README.md",)


def test_one_file_may_be_named_and_the_digest_is_of_content_alone(place: Path) -> None:
    part, new, _ = datasets.digits()
    datasets.save_npz(place / "a" / "x.npz", part)
    datasets.save_npz(place / "b" / "x.npz", part)
    datasets.save_npz(place / "c" / "x.npz", new)
    digests = [fetch(place, f"{name}/x.npz").source.digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_only_what_lies_below_an_allowed_prefix_is_fetched(place: Path) -> None:
    datasets.save_npz(place / "secret" / "x.npz", datasets.digits()[0])
    with pytest.raises(Permanent, match="allowed"):
        fetch(place, "secret", "data")
    with pytest.raises(Permanent, match="allowed"):
        dataset.fetch(f"file://{place}/secret", [], {}, place / "tmp")


def test_nothing_there_no_data_and_mixed_data_are_told_apart(place: Path) -> None:
    with pytest.raises(NotFound):
        fetch(place, "absent")
    (place / "d").mkdir()
    (place / "d" / "x.txt").write_text("x")
    with pytest.raises(Permanent, match="does not hold"):
        fetch(place, "d")
    datasets.save_npz(place / "d" / "x.npz", datasets.digits()[0])
    (place / "d" / "x.csv").write_text("a,label\n1,2\n")
    with pytest.raises(Permanent, match="one kind"):
        fetch(place, "d")


def test_no_uri_says_what_to_do(place: Path) -> None:
    with pytest.raises(Permanent, match=r"set spec\.datasetUri"):
        dataset.gather("", [], [], {}, place / "tmp")


def test_old_sources_come_first_each_once_and_a_lost_one_is_said(place: Path) -> None:
    part, new, _ = datasets.digits()
    for name, content in (("old", part), ("new", new), ("copy", new)):
        datasets.save_npz(place / name / "x.npz", content)
    digest = fetch(place, "old").source.digest
    old = [Source(f"file://{place}/{name}", digest) for name in ("gone", "old", "copy", "new")]
    found = dataset.gather(f"file://{place}/new", old, [f"file://{place}"], {}, place / "tmp")
    assert [item.source.uri.rpartition("/")[2] for item in found.fetched] == ["old", "new"]
    [lost] = found.lost
    assert "left out" in lost
    assert "/gone" in lost
    assert [note.partition(" ")[0].rpartition("/")[2] for note in found.notes] == ["copy", "new"]
    assert all("has changed" in note for note in found.notes)


def test_all_faults_of_all_sources_are_named_at_once(place: Path) -> None:
    bad = Digits(np.full((10, 64), np.nan, dtype=np.float32), np.zeros(10, dtype=int))
    datasets.save_npz(place / "bad" / "x.npz", bad)
    datasets.save_npz(place / "new" / "x.npz", Digits(np.eye(60, dtype=np.float32), np.arange(60)))
    with pytest.raises(Permanent) as caught:
        dataset.check([fetch(place, "bad"), fetch(place, "new")])
    assert [name.rpartition(" ")[2] for name in caught.value.faults] == ["rows", "labels", "values", "form"]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=80), st.integers(0, 5))
def test_a_row_judges_or_trains_wherever_it_stands_and_whatever_its_label(values: list[int], seed: int) -> None:
    features = np.array(values, dtype=np.float32).reshape(-1, 1)
    mask = dataset.held_out(dataset.keys(rows(features, values)))
    side = dict(zip(values, mask.tolist(), strict=True))
    order = np.random.default_rng(seed).permutation(len(values))
    again = dataset.held_out(dataset.keys(rows(features[order], [0] * len(values))))
    assert [side[values[i]] for i in order] == again.tolist()


def test_about_a_fifth_judges() -> None:
    features = np.arange(5000, dtype=np.float32).reshape(-1, 1)
    share = dataset.held_out(dataset.keys(rows(features, [0] * 5000))).mean()
    assert 0.17 < share < 0.23


def test_no_row_of_the_evaluation_set_is_trained_on(place: Path) -> None:
    part, _, judge = datasets.digits()
    datasets.save_npz(place / "d" / "x.npz", part + judge)
    datasets.save_npz(place / "e" / "x.npz", judge)
    ((_, used),) = dataset.training_rows([fetch(place, "d")], fetch(place, "e").rows)
    assert not set(dataset.keys(used)) & set(dataset.keys(fetch(place, "e").rows))
    assert len(used) == 700


def test_held_out_rows_are_never_trained_on_and_know_old_from_new(place: Path) -> None:
    part, new, _ = datasets.digits()
    datasets.save_npz(place / "a" / "x.npz", part)
    datasets.save_npz(place / "b" / "x.npz", new)
    both = [fetch(place, "a"), fetch(place, "b")]
    judging = dataset.evaluation_rows(both)
    trained = {key for _, used in dataset.training_rows(both, None) for key in dataset.keys(used)}
    assert not trained & set(dataset.keys(judging))
    assert set(judging.slices.tolist()) == {"old data", "new data"}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"sources": 3}', '{"sources": [1]}', '{"sources": [{"uri": 1, "digest": 2}]}']
)
def test_a_record_that_is_not_one_is_no_memory(tmp_path: Path, text: str) -> None:
    (tmp_path / dataset.RECORD).write_text(text)
    assert dataset.sources(tmp_path) == []
    assert dataset.remembered(None) == []


def test_the_eight_most_recent_sources_are_remembered(tmp_path: Path) -> None:
    sources = [{"uri": f"s3://b/{n}", "digest": "d"} for n in range(12)]
    (tmp_path / dataset.RECORD).write_text(json.dumps({"sources": sources}))
    assert [s.uri[-1:] for s in dataset.sources(tmp_path)] == list("45678901")
