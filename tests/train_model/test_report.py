"""The model card says what the gate found, in every case; whatever it shows came from others and stays mere text."""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train_model.world import World
from train_model import card as card_module
from train_model import report, tracking
from train_model.attempt import Attempt, GateSettings
from train_model.card import Card, Drift
from train_model.verdict import Judged, Said, judge, refused

HOSTILE = "</text></style><script src=http://evil>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e\x1b[2J|`["
GATE = GateSettings()


def judged(
    classes: int = 10, rows: int = 1000, wrong: float = 0.1, slices: int = 2, *, alone: bool = False, name: str = "c"
) -> Judged:
    """What a gate found: a champion that errs in 20 % of the rows, and a challenger that errs in `wrong`."""
    chance = np.random.default_rng(1)
    names = np.array([f"{number} {name}"[:64] for number in range(classes)])
    labels = chance.choice(names, rows)
    before, after = (
        np.where(chance.random(rows) < share, chance.choice(names, rows), labels) for share in (0.2, wrong)
    )
    parts = np.array([f"{name} {number}" for number in range(slices)])[np.arange(rows) % slices]
    verdict = judge(labels, Said(after), None if alone else Said(before), parts, GATE)
    return Judged(verdict, labels, (None if alone else before, after), "ab" * 32, verdict.explanation)


def regression(rows: int = 600, scale: float = 1.0) -> Judged:
    chance = np.random.default_rng(2)
    labels = scale * chance.normal(20, 5, rows)
    before, after = (labels + scale * chance.normal(0, spread, rows) for spread in (3, 1))
    parts = np.array(["drifted", "reference"])[np.arange(rows) % 2]
    verdict = judge(labels, Said(after), Said(before), parts, GATE)
    return Judged(verdict, labels, (before, after), "ab" * 32, verdict.explanation)


def card(found: Judged, name: str = "digits") -> Card:
    """With a drifted feature, a curve and where it comes from."""
    old, new = (0.0, 0.1, 0.2, 0.4, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.2, 0.1, 0.1, 0.0)
    drift = Drift(name, 0.31, -1.0, 1.0, old, new)
    curve = [(step, 1 / (1 + step)) for step in range(50)]
    facts = {"model": name, "alert": name, "digest of the model": found.digest, "data 1": f"s3://bucket/{name}"}
    return Card(name, found, GATE.margin, facts, (drift, replace(drift, name=f"{name} 2")), {name: curve})


CANNOT = refused("CannotPredict", "the challenger cannot predict: ModuleNotFoundError", "accuracy", 300, 0.05)
CASES = {
    "accepted": card(judged()),
    "rejected": card(judged(wrong=0.3)),
    "without champion": card(judged(alone=True)),
    "cannot predict": card(Judged(CANNOT, judged().labels, (judged().predictions[0], "no module"), "", "it cannot")),
    "broken champion": card(replace(judged(alone=True), predictions=("it died", judged().predictions[1]))),
    "three classes": card(judged(classes=3)),
    "twenty classes": card(judged(classes=20)),
    "a hundred classes": card(judged(classes=100)),
    "regression": card(regression()),
    "a vast regression": card(regression(scale=1e90)),
    "twelve slices": card(judged(slices=12)),
    "a slice for each row": card(judged(slices=1000)),
    "hostile": card(judged(name=HOSTILE), HOSTILE),
    "long names": card(judged(name="a-name-without-any-blank-that-goes-on-and-on-" * 4), "long" * 100),
    "no rows": card(Judged(refused("NotEnoughData", "none", "accuracy", 0, 0.05), np.array([]), (None, ""), "", "")),
}


class Reader(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.values: list[str] = []
        self.styles: list[str] = []
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.styles += [value or "" for name, value in attrs if name == "style"]
        self.values += [value or "" for name, value in attrs if name not in ("class", "aria-label", "xmlns")]

    def handle_data(self, data: str) -> None:
        self.words += data


TAGS = {
    "html", "meta", "title", "style", "main", "section", "h1", "h2", "h3", "p", "div", "span", "figure", "figcaption",
    "table", "thead", "tbody", "tr", "th", "td", "svg", "g", "rect", "text", "line", "circle", "path", "polyline",
    "details", "summary",
}  # fmt: skip


def harmless(page: str) -> Reader:
    """Only our tags; nothing that runs, and nothing that is loaded from anywhere."""
    read = Reader(page)
    assert read.tags <= TAGS, read.tags - TAGS
    assert not [name for name in read.attributes if name.startswith("on") or name in ("src", "href", "xlink:href")]
    assert all(re.fullmatch(r"(--c:var\(--\w+\)|fill-opacity:[0-9.]+)", style) for style in read.styles), read.styles
    assert not [value for value in read.values if "://" in value or "javascript:" in value]
    assert not re.search(r"url\(|@import|expression\(", page)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", page)
    return read


@pytest.mark.parametrize("name", CASES)
def test_each_case_is_one_harmless_page_of_a_bounded_size(name: str) -> None:
    found = CASES[name]
    files = card_module.files(found)
    read = harmless(files["model_card.html"])
    assert card_module.headline(found.judged.verdict) in read.words
    assert len(files["model_card.html"]) < 400_000
    assert {"model_card.html", "model_card.md"} <= files.keys()
    for file, content in files.items():
        if file.endswith(".svg"):
            ElementTree.fromstring(content)  # noqa: S314 - our own
            harmless(content.partition("?>")[2] or content)
    assert "nan" not in read.words.casefold().split()


def test_what_the_gate_found_stands_on_the_card() -> None:
    page = Reader(card_module.html(CASES["accepted"])).words
    verdict = CASES["accepted"].judged.verdict
    assert verdict.champion is not None
    for number in (f"{100 * verdict.challenger:.1f} %", f"{100 * verdict.champion:.1f} %", verdict.slices[0].name):
        assert number in page
    assert {"Champion and challenger", "Slices", "Confusion", "What drifted", "How it learned"} <= {
        part.title for part in card_module.sections(CASES["accepted"])
    }


def test_of_many_slices_the_worst_that_are_judged_stand_on_the_card() -> None:
    found = judged(slices=40, rows=8000)
    small = replace(found.verdict.slices[0], name="tiny", rows=3, change=-0.9, lower=None, upper=None)
    found = replace(found, verdict=replace(found.verdict, slices=(small, *found.verdict.slices)))
    (part,) = [part for part in card_module.sections(card(found)) if part.title == "Slices"]
    shown = {row[0] for row in part.table[1:]}
    by_change = sorted(found.verdict.slices[1:], key=lambda each: each.change)
    assert shown == {each.name for each in by_change[:30]}
    assert "30 of 41" in part.words


@given(st.text(max_size=60) | st.sampled_from([HOSTILE, "a|b\n# c", "[x](http://evil)", "<b>", "&lt;", "*" * 50]))
@settings(max_examples=60)
def test_whatever_text_came_from_others_stays_text(foreign: str) -> None:
    found = card(replace(judged(classes=3, rows=300, name="x" + foreign), explanation=foreign), foreign)
    files = card_module.files(found)
    harmless(files["model_card.html"])
    for line in files["model_card.md"].splitlines():
        assert not re.search(r"(?<!\\)\]\((?!\w+\.svg\))", line), line  # no link but to our plots
        assert "<" not in line.replace("&lt;", "")


@pytest.mark.parametrize(
    "broken",
    [
        None, 3, "x", [3], [{}], [{"name": "a"}],
        [{"name": "a", "distance": "x", "low": 0, "high": 1, "old": [1], "new": [1]}],
        [{"name": "a", "distance": float("nan"), "low": 0, "high": 1, "old": [1], "new": [1]}],
        [{"name": "a", "distance": 1, "low": 0, "high": 1, "old": [1e999], "new": [1]}],
        [{"name": "a", "distance": 1, "low": 0, "high": 1, "old": 7, "new": [1]}],
    ],
)  # fmt: skip
def test_a_record_of_drift_in_another_form_is_left_out(broken: Any) -> None:
    assert report.drifted({"drifted": broken}) == ()


def test_a_record_of_drift_is_bounded() -> None:
    whole = {"name": "a", "distance": 0.5, "low": 0, "high": 1, "old": [0.5] * 1000, "new": [0.5] * 1000}
    found = report.drifted({"drifted": [whole] * 50})
    assert len(found) == 8
    assert len(found[0].old) <= 50


def test_the_run_s_metrics_are_finite_and_named_as_mlflow_takes_them() -> None:
    for found in CASES.values():
        for name, value in report.measures(found.judged.verdict).items():
            assert math.isfinite(value)
            assert re.fullmatch(r"[\w./ -]+", tracking.metric_name(name)), name


@pytest.mark.parametrize("tracked", [True, False])
def test_the_report_is_shown_in_the_run_and_beside_the_outputs(
    world: World, tracked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(world.root)  # where a database of MLflow puts its artifacts
    attempt = Attempt.from_env(world.environment())
    attempt.model_dir.mkdir(parents=True)
    drift = {"name": "speed", "distance": 0.5, "low": 0, "high": 1, "old": [0.5, 0.5], "new": [1, 0]}
    record = {"drifted": [drift], "sources": [{"uri": "s3://bucket/new", "digest": "cd" * 32}], "rows": 7}
    (attempt.model_dir / "aegis_dataset.json").write_text(json.dumps(record))
    run = None
    # A database has no artifact proxy: MLflow puts artifacts below the folder that it is in.
    with contextlib.chdir(world.root), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's and SQLAlchemy's; in a process of their own they only print
        if tracked:
            run = tracking.begin(attempt, tracking.identity(attempt))
            run.metrics([("loss", 1 / step, step, 1000 * step) for step in (1, 2, 3)])
        report.show(attempt, run, judged(), world.env)
    page = Reader((attempt.out / "report" / "model_card.html").read_text())
    for word in ("speed", "s3://bucket/new", "cd" * 32, "ev-1"):
        assert word in page.words, word
    if run is None:
        return
    assert "How it learned" in page.words
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = MlflowClient(world.tracking)
        there = {item.path for item in client.list_artifacts(run.run_id)}
        told = client.get_run(run.run_id)
    assert there == {path.name for path in (attempt.out / "report").iterdir()}
    assert told.info.status == "FINISHED"
    assert (told.data.tags["aegis.verdict"], told.data.tags["aegis.reason"]) == ("Accepted", "Accepted")
