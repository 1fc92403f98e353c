"""The model card: what a person reads to agree or disagree with the gate. One file, no network, all text escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from aegis.names import printable
from train_model.verdict import Verdict

MAX_CLASSES = 20
"""A larger confusion matrix is a grey square: the card then says how many classes there are."""
_STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:auto;padding:1rem}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.2rem .6rem;text-align:right}
th:first-child,td:first-child{text-align:left}td{overflow-wrap:anywhere}.m td{text-align:center}
svg{max-width:100%;height:auto}text{fill:currentColor}
"""


@dataclass(frozen=True, slots=True)
class Card:
    """What a card shows. `predictions` is None if the challenger could not predict."""

    facts: Mapping[str, str]
    explanation: str
    verdict: Verdict
    labels: NDArray[np.str_]
    predictions: NDArray[np.str_] | None


def html(card: Card) -> str:
    """The whole page."""
    result = "Accepted" if card.verdict.accept else "Rejected"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{_text(card.facts.get('model', ''))}: {result}</title><style>{_STYLE}</style>",
        f"<h1>{_text(card.facts.get('model', ''))}: {result}</h1><p>{_text(card.explanation)}</p>",
        "<h2>Champion and challenger</h2>",
        _bars(card.verdict),
        "<h2>Slices</h2>" + _table(_slices(card.verdict)) if card.verdict.slices else "",
        _confusion(card),
        "<h2>Where it comes from</h2>" + _table([("", ""), *card.facts.items()]),
    ]
    return "\n".join(part for part in parts if part)


def markdown(card: Card) -> str:
    """The same without pictures."""
    result = "Accepted" if card.verdict.accept else "Rejected"
    lines = [f"# {_mark(card.facts.get('model', ''))}: {result}", "", _mark(card.explanation), ""]
    for rows in (_slices(card.verdict) if card.verdict.slices else [], [("fact", "value"), *card.facts.items()]):
        for number, row in enumerate(rows):
            lines.append("| " + " | ".join(map(_mark, row)) + " |")
            lines += ["|" + " --- |" * len(row)] if number == 0 else []
        lines.append("")
    return "\n".join(lines)


def _text(value: str) -> str:
    """Foreign text for a page."""
    return escape(printable(value), quote=True)


def _mark(value: str) -> str:
    return re.sub(r"([\\`*_\[\]|#!~])", r"\\\1", _text(value))


def _slices(verdict: Verdict) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("slice", "rows", "champion", "challenger", "change", "at least")]
    for part in verdict.slices:
        bound = "not judged" if part.lower is None else f"{100 * part.lower:+.1f}"
        shares = (f"{100 * part.champion:.1f} %", f"{100 * part.challenger:.1f} %", f"{100 * part.change:+.1f}")
        rows.append((part.name, f"{part.rows:,}", *shares, bound))
    return rows


def _table(rows: Sequence[tuple[str, ...]], kind: str = "") -> str:
    head, *body = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    lines = "".join(f"<tr>{line}</tr>" for line in body)
    return f"<table{kind}><thead><tr>{head.replace('td>', 'th>')}</tr></thead><tbody>{lines}</tbody></table>"


def _bars(verdict: Verdict) -> str:
    shares = [("challenger", verdict.challenger), ("champion", verdict.champion)]
    drawn = []
    for number, (name, share) in enumerate((name, share) for name, share in shares if share is not None):
        y = 30 * number
        drawn.append(
            f"<text x=0 y={y + 19}>{name}</text><rect x=100 y={y + 4} width={400 * share:.1f} height=22 fill=#4a7ebb />"
            f"<text x={105 + 400 * share:.0f} y={y + 20}>{100 * share:.1f} %</text>"
        )
    return f"<svg viewBox='0 0 580 {30 * len(drawn)}' role=img aria-label='accuracies'>{''.join(drawn)}</svg>"


def _confusion(card: Card) -> str:
    if card.predictions is None:
        return ""
    names = sorted(set(card.labels.tolist()), key=lambda name: (len(name), name))
    if len(names) > MAX_CLASSES:
        return f"<p>{len(names)} classes: too many for a confusion matrix here.</p>"
    rows: list[tuple[str, ...]] = [("true \\ challenger", *names, "other")]
    for name in names:
        said = card.predictions[card.labels == name]
        counts = [int((said == other).sum()) for other in names]
        rows.append((name, *map(str, counts), str(len(said) - sum(counts))))
    return "<h2>Confusion</h2>" + _table(rows, " class=m")
