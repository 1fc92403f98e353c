"""The model card: what a person reads to agree or disagree with the gate. One file, no network, no script.

Pure. Everything that comes from elsewhere (an alert, a data set, a trainer, a model's answers) is escaped here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_model import plots
from train_model.plots import Estimate, text
from train_model.verdict import Judged, Slice, Verdict

MAX_CLASSES = 20
"""A larger confusion matrix is a grey square: the card then lists what is mistaken for what."""
_PAIRS = 15
_SLICES = 30
"""A card with more of them is read by nobody: these are the worst."""
_STYLE = (
    plots.COLOURS
    + """
:root{color-scheme:light dark}*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:auto;padding:1rem}
body{background:var(--paper);color:var(--ink)}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.2rem;margin-top:2rem}
h1,h2,p,figcaption{overflow-wrap:anywhere}
svg{display:block;width:100%;max-width:30rem;height:auto}
.side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1rem 2rem;align-items:start}
.wide{overflow-x:auto;margin:.5rem 0}figure{margin:0}figcaption{color:var(--soft)}
table{border-collapse:collapse}td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid var(--line)}
td,th{white-space:nowrap}td:first-child,th:first-child{text-align:left;min-width:7rem;padding-left:0}
td:first-child{white-space:normal;overflow-wrap:anywhere}
.key::before{content:"";display:inline-block;width:.8em;height:.8em;margin-right:.4em;background:var(--c)}
.key{margin-right:1rem}summary{cursor:pointer;color:var(--soft)}
.facts td{text-align:left;vertical-align:top;white-space:normal;overflow-wrap:anywhere;min-width:7rem}
"""
)
_REASONS = {
    "Accepted": "the challenger is better",
    "NotEnoughData": "not enough data to judge",
    "Worse": "worse than the champion",
    "NotBetter": "not clearly better",
    "SliceHarmed": "a slice lost too much",
    "BelowFloor": "not good enough",
    "NoChampion": "no champion to compare with",
    "ChampionBroken": "the champion gives no answers",
    "CannotPredict": "the challenger gives no answers",
    "OldDataLost": "old knowledge cannot be judged",
}
Table = list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Drift:
    """How one feature moved: shares of rows in bins of one width from `low` to `high`, before and now."""

    name: str
    distance: float
    low: float
    high: float
    old: tuple[float, ...]
    new: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """What a card shows. `margin` is what the gate's settings say; `facts` are where the model comes from."""

    model: str
    judged: Judged
    margin: float
    facts: Mapping[str, str]
    drifted: Sequence[Drift] = ()
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, its plots (file name, caption, SVG) and the same in numbers."""

    title: str
    words: str
    figures: Sequence[tuple[str, str, str]]
    table: Table
    key: bool = False


def html(card: Card) -> str:
    """The whole page."""
    name, result = text(card.model, 80), text(headline(card.judged.verdict))
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{name}: {result}</title><style>{_STYLE}</style><main>",
        f"<h1>{name}: {result}</h1><p>{text(card.judged.explanation, 4000)}</p>",
        *map(_section, sections(card)),
        '<h2>Where it comes from</h2><div class="wide"><table class="facts"><tbody>',
        *(f"<tr><td>{text(name, 80)}</td><td>{text(value)}</td></tr>" for name, value in card.facts.items()),
        "</tbody></table></div></main></html>",
    ]
    return "\n".join(parts)


def markdown(card: Card) -> str:
    """The same, with its plots as files beside it."""
    lines = [f"# {_mark(card.model)}: {headline(card.judged.verdict)}", "", _mark(card.judged.explanation, 4000), ""]
    for part in sections(card):
        lines += [f"## {part.title}", ""] + ([_mark(part.words), ""] if part.words else [])
        lines += [f"![{_mark(caption)}]({file}.svg)" for file, caption, _ in part.figures]
        lines += ["", *_rows(part.table), ""]
    lines += ["## Where it comes from", "", *_rows([("fact", "value"), *card.facts.items()]), ""]
    return "\n".join(lines)


def files(card: Card) -> dict[str, str]:
    """Everything by file name."""
    drawn = {f"{file}.svg": plots.alone(svg) for part in sections(card) for file, _, svg in part.figures}
    return {"model_card.html": html(card), "model_card.md": markdown(card)} | drawn


def headline(verdict: Verdict) -> str:
    """The verdict in a few words."""
    return f"{'Accepted' if verdict.accept else 'Rejected'}, {_REASONS[verdict.reason]}"


def sections(card: Card) -> list[Section]:
    """What there is to show."""
    found = [_compared(card.judged.verdict), _sliced(card), _answers(card.judged), _drifted(card), _learned(card)]
    return [part for part in found if part]


# --- the sections


def _compared(verdict: Verdict) -> Section | None:
    shown = _shown(verdict.metric)
    means = [("champion", verdict.champion, "old"), ("challenger", verdict.challenger, "new")]
    rows = [
        Estimate(name, value, *verdict.intervals.get(name, (value, value)), kind)
        for name, value, kind in means
        if value is not None and math.isfinite(value)
    ]
    if not rows:
        return None
    better = "more" if verdict.metric == "accuracy" else "less"
    words = f"{verdict.metric} on {verdict.rows:,} rows, {better} is better, with 95 % intervals."
    if verdict.p is not None:
        rival = "champion and challenger were equal" if verdict.champion is not None else "it only guessed"
        words += f" p = {verdict.p:.2g}, needed below {verdict.level:.2g}: how often so much is seen if {rival}."
    table: Table = [("", verdict.metric, "from", "to")]
    table += [(row.name, *map(shown, (row.value, row.low, row.high))) for row in rows]
    if verdict.change:
        table.append(("change for the better", *map(_changed(verdict.metric), verdict.change)))
    label = f"{verdict.metric} of {' and '.join(row.name for row in rows)} with 95 % intervals"
    return Section("Champion and challenger", words, [("compared", label, plots.estimates(rows, label, shown))], table)


def _sliced(card: Card) -> Section | None:
    verdict = card.judged.verdict
    if not verdict.slices or verdict.champion is None:
        return None
    allowed = card.margin * (1.0 if verdict.metric == "accuracy" else verdict.champion)
    shown, changed = _shown(verdict.metric), _changed(verdict.metric)
    worst = sorted(verdict.slices, key=lambda part: (part.lower is None, part.change))[:_SLICES]
    kept = [part for part in verdict.slices if part in worst]
    rows = [
        Estimate(
            f"{part.name} ({part.rows:,})", part.change, *_bounds(part), "new" if part.lower is not None else "old"
        )
        for part in kept
        if math.isfinite(part.change)
    ]
    label = f"change of {verdict.metric} in each slice"
    marks = [(-allowed, f"may lose {changed(allowed).lstrip('+')}"), (0.0, "no change")]
    table: Table = [("slice", "rows", "champion", "challenger", "change", "surely above", "surely below")]
    for part in kept:
        bounds = ("too few rows", "") if part.lower is None else (changed(part.lower), _most(part, changed))
        means = (shown(part.champion), shown(part.challenger), changed(part.change))
        table.append((part.name, f"{part.rows:,}", *means, *bounds))
    words = (
        "How much better each slice got, with one-sided 95 % bounds: the whole line has to lie right of what a slice "
        "may lose. One without a line has too few rows to be judged."
    )
    if len(kept) < len(verdict.slices):
        words += f" These are the worst {len(kept)} of {len(verdict.slices):,}, those that are judged first."
    return Section("Slices", words, [("slices", label, plots.estimates(rows, label, changed, marks))], table)


def _bounds(part: Slice) -> tuple[float, float]:
    if part.lower is None:
        return part.change, part.change
    return part.lower, math.inf if part.upper is None else part.upper


def _most(part: Slice, changed: Callable[[float], str]) -> str:
    return "" if part.upper is None else changed(part.upper)


def _answers(judged: Judged) -> Section | None:
    """What the models said: a matrix, a list of the most confused, or numbers against numbers."""
    both = [
        (name, said, kind)
        for name, said, kind in zip(("champion", "challenger"), judged.predictions, ("old", "new"), strict=True)
    ]
    known = [(name, said, kind) for name, said, kind in both if isinstance(said, np.ndarray)]
    if not known or not len(judged.labels):
        return None
    if judged.labels.dtype.kind == "f":
        return _numbers(judged.labels, known)
    names = sorted(set(judged.labels.tolist()), key=lambda name: (len(name), name))
    return (_matrices if len(names) <= MAX_CLASSES else _pairs)(judged.labels, names, known)


Known = Sequence[tuple[str, NDArray[Any], str]]


def _numbers(labels: NDArray[Any], known: Known) -> Section:
    values = np.concatenate([labels, *(said for _, said, _ in known)])
    span = (float(values.min()), float(values.max()))
    span = span if span[0] < span[1] else (span[0] - 1, span[1] + 1)
    table: Table = [("", "mean error", "half are closer than", "90 % are closer than", "leans by")]
    figures = []
    for name, said, kind in known:
        label = f"{name}: predicted against true"
        figures.append((f"predicted_{name}", label, plots.density(labels, said, span, label, kind)))
        error = said - labels
        spread = (np.abs(error).mean(), *np.quantile(np.abs(error), (0.5, 0.9)), error.mean())
        table.append((name, *(f"{value:.4g}" for value in spread)))
    words = "Predicted against true; on the dashed line they are the same. The darker, the more rows."
    return Section("Predicted and true", words, figures, table)


def _matrices(labels: NDArray[Any], names: Sequence[str], known: Known) -> Section:
    index = {name: number for number, name in enumerate(names)}
    true = np.array([index[label] for label in labels.tolist()])
    columns, figures = list(names), []
    table: Table = [("class", "rows", *(f"{name} finds" for name, _, _ in known))]
    counted = []
    for name, said, kind in known:
        counts = np.zeros((len(names), len(names) + 1), dtype=np.int64)
        said_as = np.array([index.get(answer, len(names)) for answer in said.tolist()])
        np.add.at(counts, (true, said_as), 1)
        counted.append((name, counts, kind))
    if any(counts[:, -1].any() for _, counts, _ in counted):
        columns.append("other")
    for name, counts, kind in counted:
        label = f"{name}: what it says ({len(names)} classes)"
        drawn = plots.matrix(counts[:, : len(columns)], names, columns, label, kind)
        figures.append((f"confusion_{name}", label, drawn))
    for number, name in enumerate(names):
        rows = int(counted[0][1][number].sum())
        found = (
            f"{int(counts[number, number]):,} ({_percent(counts[number, number] / rows)})" for _, counts, _ in counted
        )
        table.append((name, f"{rows:,}", *found))
    words = "Each row is a true class, each column an answer. The darker, the larger the share of the row."
    return Section("Confusion", words, figures, table)


def _pairs(labels: NDArray[Any], names: Sequence[str], known: Known) -> Section:
    counted = [
        Counter(zip(labels[said != labels].tolist(), said[said != labels].tolist(), strict=True))
        for _, said, _ in known
    ]
    worst = counted[-1].most_common(_PAIRS)
    table: Table = [("true", "said", *(name for name, _, _ in known))]
    table += [(*pair, *(f"{each[pair]:,}" for each in counted)) for pair, _ in worst]
    words = f"{len(names)} classes are too many for a matrix; these are confused the most (rows, by the challenger's)."
    return Section("Confusion", words, [], table)


def _drifted(card: Card) -> Section | None:
    if not card.drifted:
        return None
    figures: list[tuple[str, str, str]] = []
    table: Table = [("feature", "distance", "mean before", "mean now")]
    for number, drift in enumerate(card.drifted, 1):
        label = f"{drift.name}: distance {drift.distance:.3g}"
        drawn = plots.histogram(drift.old, drift.new, drift.low, drift.high, label)
        figures.append((f"drifted_{number}", label, drawn))
        means = (f"{_mean(drift, shares):.4g}" for shares in (drift.old, drift.new))
        table.append((drift.name, f"{drift.distance:.3g}", *means))
    words = "Shares of rows in ten bins, before and now; the features that moved the most."
    return Section("What drifted", words, figures, table, key=True)


def _mean(drift: Drift, shares: Sequence[float]) -> float:
    """Of what a histogram shows."""
    step, total = (drift.high - drift.low) / len(shares), sum(shares) or 1.0
    return sum(share / total * (drift.low + step * (number + 0.5)) for number, share in enumerate(shares))


def _learned(card: Card) -> Section | None:
    if not card.curves:
        return None
    figures: list[tuple[str, str, str]] = []
    table: Table = [("metric", "points", "first", "least", "most", "last")]
    for number, (name, points) in enumerate(card.curves.items(), 1):
        values = [value for _, value in points]
        figures.append((f"curve_{number}", name, plots.curve(points, f"{name} by step")))
        numbers = (f"{value:.4g}" for value in (values[0], min(values), max(values), values[-1]))
        table.append((name, f"{len(values):,}", *numbers))
    return Section("How it learned", "As the trainer told it during the fit.", figures, table)


# --- writing


def _section(part: Section) -> str:
    figures = "".join(
        f"<figure><figcaption>{text(caption, 200)}</figcaption>{svg}</figure>" for _, caption, svg in part.figures
    )
    key = f"<p>{''.join(map(_key, (('before', 'old'), ('now', 'new'))))}</p>" if part.key else ""
    drawn = f'{key}<div class="side">{figures}</div>' if figures else ""
    return f"<section><h2>{part.title}</h2><p>{text(part.words)}</p>{drawn}{_table(part.table, part.title)}</section>"


def _key(entry: tuple[str, str]) -> str:
    return f'<span class="key" style="--c:var(--{entry[1]})">{entry[0]}</span>'


def _table(rows: Table, label: str) -> str:
    """Wider than a phone, it alone scrolls sideways, by keyboard too."""
    head, *body = rows
    names = "".join(f'<th scope="col">{text(cell, 80)}</th>' for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{text(cell, 80)}</td>' for cell in row)}</tr>" for row in body)
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="wide" tabindex="0" role="region" aria-label="{text(label)} in numbers">{table}</div>'


def _mark(value: str, limit: int = 500) -> str:
    """Foreign text for Markdown, where HTML counts too; an address is not made a link."""
    return (
        re.sub(r"([\\`*_\[\]|#!~()])", r"\\\1", text(value, limit))
        .replace("://", ":\u200b//")
        .replace("www.", "www\\.")
    )


def _rows(rows: Table) -> list[str]:
    lines = ["| " + " | ".join(_mark(cell) for cell in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _shown(metric: str) -> Callable[[float], str]:
    return _percent if metric == "accuracy" else "{:.4g}".format


def _changed(metric: str) -> Callable[[float], str]:
    """A change: points, or in the metric's own unit."""
    if metric == "accuracy":
        return lambda change: f"{100 * change:+.1f}".replace("-", "\u2212")
    return lambda change: f"{change:+.3g}".replace("-", "\u2212")
