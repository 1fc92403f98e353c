"""What is fetched, held out, refused and remembered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis import storage
from aegis.errors import NotFound, Permanent
from tests.train_model import datasets
from tests.train_model.datasets import Digits
from train_model import checks, dataset, images, readers
from train_model.dataset import Source
from train_model.readers import NoLabels, Rows


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
        checks.check([fetch(place, "bad"), fetch(place, "new")])
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


# --- what forbids training


def fetched(uri: str, found: Rows) -> dataset.Fetched:
    return dataset.Fetched(Source(uri, "d"), found, (), ())


def table(labels: list[object] | None = None, count: int = 200, seed: int = 0, **columns: object) -> Rows:
    """Columns of random numbers, or of what is given."""
    rng = np.random.default_rng(seed)
    given = {name: rng.normal(size=count) if value is None else np.array(value) for name, value in columns.items()}
    values = {name: np.broadcast_to(value.astype(np.float64), count) for name, value in given.items()}
    found = np.array(labels) if labels else np.arange(count) % 2
    return Rows(np.column_stack(list(values.values())), found, np.full(count, ""), (len(values),), tuple(values))


@pytest.mark.parametrize(("allowed", "bad"), [(0.0, ["gaps", "holes"]), (0.1, ["holes"]), (0.3, [])])
def test_of_a_column_as_much_may_be_missing_as_its_owner_allows(allowed: float, bad: list[str]) -> None:
    gaps, holes = np.arange(200.0), np.arange(200.0)
    gaps[:20], holes[:60] = np.nan, np.nan
    found = checks.faults(table(whole=None, gaps=gaps, holes=holes), max_missing=allowed)
    assert [name for name in ("whole", "gaps", "holes") if name in found.get("missing values", "")] == bad
    if bad:
        assert "spec.trainer.maxMissing" in found["missing values"]


def test_nothing_infinite_and_nothing_missing_in_an_image_is_ever_allowed() -> None:
    infinite = np.arange(200.0)
    infinite[3] = np.inf
    assert "infinite in 1 columns (x)" in checks.faults(table(x=infinite), max_missing=0.9)["values"]
    pixels = np.ones((60, 4), dtype=np.float32)
    pixels[0, 2] = np.nan
    assert "#2" in checks.faults(rows(pixels, [0, 1] * 30), max_missing=0.9)["missing values"]


def test_too_many_classes_are_perhaps_quantities() -> None:
    many = table(labels=list(range(1001)), count=1001, x=None)
    assert "spec.trainer.task: regression" in checks.faults(many)["labels"]
    assert checks.faults(many, numbers=True) == {}
    assert "the same" in checks.faults(table(labels=[1.5] * 60, count=60, x=None), numbers=True)["labels"]


def test_columns_that_came_or_went_are_named() -> None:
    old, new = table(a=None, b=None, c=None), table(a=None, d=None, c=None)
    with pytest.raises(Permanent, match="the new data lacks b and has d besides"):
        checks.check([fetched("old", old), fetched("new", new)])
    with pytest.raises(Permanent, match="another order"):
        checks.check([fetched("old", table(a=None, b=None)), fetched("new", table(b=None, a=None))])


def test_a_label_that_no_evaluation_row_has_cannot_be_judged() -> None:
    judge = fetched("judge", table(labels=["a", "b"] * 100, x=None))
    good = fetched("new", table(labels=["a", "b"] * 100, x=None))
    assert checks.unjudged([good], judge) == []
    more = fetched("more", table(labels=["a", "c"] * 100, x=None))
    with pytest.raises(Permanent, match=r"no row of judge has.*more: c$"):
        checks.unjudged([good, more], judge)
    one = fetched("one", table(labels=["a"] * 200, x=None))
    assert checks.unjudged([one], judge) == ["labels of the evaluation set that nothing teaches: b"]


def test_a_column_that_died_is_a_fault_and_one_that_never_lived_a_note() -> None:
    old = fetched("old", table(sensor=None, never=7.0, seed=1))
    with pytest.raises(Permanent, match=r"dead sensor.*new: 1 columns \(sensor\)"):
        checks.constant_columns([old, fetched("new", table(sensor=0.0, never=7.0))])
    [note] = checks.constant_columns([old, fetched("new", table(sensor=None, never=7.0))])
    assert "(never)" in note
    assert checks.constant_columns([fetched("new", table(sensor=None, never=7.0))]) == [note]
    assert checks.constant_columns([old, fetched("new", table(sensor=None, never=None))]) == []


def test_a_rare_flag_that_is_nowhere_set_in_few_rows_has_not_died() -> None:
    flag = np.zeros(1000)
    flag[:30] = 1
    old = fetched("old", table(count=1000, x=None, flag=flag))
    assert "(flag)" in checks.constant_columns([old, fetched("new", table(count=60, x=None, flag=0.0))])[0]
    with pytest.raises(Permanent, match="dead sensor"):  # 0.97 ** 600 is one in a hundred million
        checks.constant_columns([old, fetched("new", table(count=600, x=None, flag=0.0))])


def test_problems_of_all_kinds_are_raised_at_once_and_one_alone_as_it_is() -> None:
    problems = checks.Problems()
    with problems.of("the data"):
        raise NoLabels("x.csv has no column label")
    with pytest.raises(NoLabels, match=r"^x\.csv"):
        problems.check()
    with problems.of("the evaluation data"):
        raise Permanent("cannot be read", {"y.csv": "empty"})
    with pytest.raises(NoLabels) as caught:
        problems.check()
    assert list(caught.value.faults) == ["the data", "the evaluation data", "y.csv"]
    with pytest.raises(Permanent, match="unverified"), problems.of("the data"):
        raise Permanent("unverified", exit_code=76)


def test_every_file_that_cannot_be_used_is_named(place: Path) -> None:
    folder = place / "d"
    folder.mkdir()
    (folder / "1.csv").write_text("a,label\n1,x\n")
    (folder / "2.csv").write_text("a,b\n1,x\n")
    (folder / "3.csv").write_text("a,label\nz,x\n")
    with pytest.raises(NoLabels, match="2 of 3 files") as caught:
        fetch(place, "d")
    assert list(caught.value.faults) == ["2.csv", "3.csv"]
    assert "could not convert" in caught.value.faults["3.csv"]


def test_a_folder_of_images_is_a_data_set_with_a_line_a_file(place: Path) -> None:
    part, _, _ = datasets.digits()
    datasets.save_images(place / "d", datasets.Digits(part.features[:60], part.labels[:60]))
    found = fetch(place, "d")
    assert (found.rows.shape, len(found.manifest)) == ((8, 8), 60)
    order = [int(str(line["path"]).rpartition("/")[2].partition(".")[0]) for line in found.manifest]
    assert found.rows.labels.tolist() == part.labels[order].tolist()
    np.testing.assert_allclose(found.rows.features, part.features[order] * 15, atol=1)


def test_a_set_that_would_not_fit_into_memory_is_refused_before_it_is_whole(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "d").mkdir()
    for number in range(3):
        np.savez_compressed(place / "d" / f"{number}.npz", X=np.zeros((100, 100)), y=np.arange(100))
    monkeypatch.setattr(dataset, "MAX_BYTES", 70_000)
    with pytest.raises(Permanent, match="unpacked"):
        fetch(place, "d")


# --- replay


def part(name: str, count: int, seed: int) -> tuple[dataset.Fetched, Rows]:
    found = table(count=count, seed=seed, x=None)
    return fetched(name, found), found


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [([1000, 1000], 100, [50, 50]), ([10, 1000], 100, [10, 90]), ([10, 20], 100, [10, 20]), ([7], 7, [7]), ([], 5, [])],
)
def test_a_replay_takes_equal_shares_of_the_past_no_more_than_the_present(
    old: list[int], new: int, kept: list[int]
) -> None:
    parts = [part(f"old{n}", count, n) for n, count in enumerate(old)] + [part("new", new, 99)]
    found = dataset.replay(parts)
    assert [len(rows) for _, rows in found] == [*kept, new]
    assert [item.source.uri for item, _ in found] == [item.source.uri for item, _ in parts]
    again = dataset.replay(parts)
    assert all((a.features == b.features).all() for (_, a), (_, b) in zip(found, again, strict=True))


def test_which_rows_are_replayed_does_not_depend_on_their_order() -> None:
    (item, whole), new = part("old", 500, 1), part("new", 100, 2)
    order = np.random.default_rng(0).permutation(500)
    shuffled = Rows(whole.features[order], whole.labels[order], whole.slices[order], whole.shape, whole.columns)
    first, second = (dataset.replay([(item, rows), new])[0][1] for rows in (whole, shuffled))
    assert set(dataset.keys(first)) == set(dataset.keys(second))


def test_the_examples_of_the_guide_are_read_as_it_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    [program] = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    monkeypatch.chdir(place)
    exec(program, {})  # noqa: S102 - our own text
    shapes = {name: fetch(place, name).rows.shape for name in ("npz", "csv", "parquet", "images", "cifar")}
    assert shapes == {"npz": (8, 8), "csv": (2,), "parquet": (2,), "images": (8, 8, 3), "cifar": (3, 32, 32)}
    assert sorted(set(fetch(place, "images").rows.labels.tolist())) == ["cat", "dog", "horse"]
    found = [fetch(place, name) for name in ("csv", "parquet")]
    checks.check(found)
    np.testing.assert_allclose(found[0].rows.features, found[1].rows.features)


def test_the_guide_tells_the_limits_that_hold() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for limit in (storage.MAX_ENTRIES, readers.MAX_ROWS, readers.MAX_COLUMNS):
        assert f"| {limit:,} |" in guide
    assert readers.MAX_BYTES == 2 << 30
    assert "2048 x 2048" in guide
    assert images.MAX_PIXELS == 2048 * 2048
    assert "eight, the most recent" in guide
    assert dataset.MAX_SOURCES == 8
