"""The plots of a model card as SVG, drawn by hand. Pure; every foreign text is escaped.

A plot is 360 units wide, which is a phone's width: there its letters are as large as the page's, elsewhere it grows.
Its colours are classes, so that one style sheet serves the page and the files, light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from aegis.names import printable

COLOURS = """
:root{--paper:#fff;--ink:#1b1f24;--soft:#59636e;--line:#d1d9e0;--old:#9a5b00;--new:#0a5cc7}
@media(prefers-color-scheme:dark){
:root{--paper:#12161b;--ink:#e8ecf0;--soft:#9da7b3;--line:#3a434d;--old:#e8a33d;--new:#6cb2ff}}
text{font:12px system-ui,sans-serif;fill:var(--ink)}.soft{fill:var(--soft)}.end{text-anchor:end}
.mid{text-anchor:middle}.grid{stroke:var(--line)}.bound{stroke:var(--ink);stroke-dasharray:4 3}
.old{fill:var(--old);stroke:var(--old)}.new{fill:var(--new);stroke:var(--new)}.thick{stroke-width:2}
.small{font-size:9px}.flat{stroke:none}.on{fill:var(--paper)}.none{fill:none}
"""
WIDTH = 360
_LEFT, _RIGHT = 8, 352


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with what it may be, `kind` "old" (champion) or "new"; a bound may be infinite."""

    name: str
    value: float
    low: float
    high: float
    kind: str


def text(value: str, limit: int = 500) -> str:
    """Foreign text for a page."""
    seen = printable(value)
    return escape(seen if len(seen) <= limit else seen[: limit - 1] + "\u2026", quote=True)


def alone(svg: str) -> str:
    """The plot as a file of its own."""
    head, _, rest = svg.partition(">")
    own = f'<svg xmlns="http://www.w3.org/2000/svg"{head.removeprefix("<svg")}>'
    return f'{own}<style>{COLOURS}</style><rect width="100%" height="100%" fill="var(--paper)"/>{rest}\n'


def estimates(
    rows: Sequence[Estimate], label: str, shown: Callable[[float], str], marks: Sequence[tuple[float, str]] = ()
) -> str:
    """A forest plot: a line a row from `low` to `high`, a dot at `value`; `marks` are lines across with a name."""
    values = [v for row in rows for v in (row.value, row.low, row.high) if math.isfinite(v)]
    least, most = _range([*values, *(at for at, _ in marks)])
    place = _scale(least, most, _LEFT + 6, _RIGHT - 6)
    top, bottom = 20 * len(marks) + 4, 20 * len(marks) + 4 + 40 * len(rows)
    drawn = [_axis(least, most, place, top, len(rows), shown)]
    for number, (at, name) in enumerate(marks):
        x, y = place(at), 20 * number + 13
        side = "end" if x > WIDTH / 2 else ""
        drawn.append(f'<line class="bound" x1="{x:.1f}" y1="{y - 10}" x2="{x:.1f}" y2="{y + 4}"/>')
        drawn.append(f'<text class="soft {side}" x="{x + (4 if not side else -4):.1f}" y="{y}">{text(name, 40)}</text>')
        drawn.append(_strokes("bound", x, top, len(rows)))
    for number, row in enumerate(rows):
        y, x = top + 40 * number, place(row.value)
        low, high = place(max(row.low, least)), place(min(row.high, most))
        drawn.append(
            f'<g class="{row.kind}"><text x="{_LEFT}" y="{y + 14}" class="flat">{text(row.name, 34)}</text>'
            f'<text x="{_RIGHT}" y="{y + 14}" class="flat end">{text(shown(row.value), 20)}</text>'
            f'<line class="thick" x1="{low:.1f}" y1="{y + 26}" x2="{high:.1f}" y2="{y + 26}"/>'
            f"{_cap(low, y, math.isfinite(row.low))}{_cap(high, y, math.isfinite(row.high))}"
            f'<circle cx="{x:.1f}" cy="{y + 26}" r="4.5"/></g>'
        )
    return _svg(bottom + 22, label, drawn)


def matrix(counts: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str], label: str, kind: str) -> str:
    """Counts as a shaded table, each row's shade by its share; `rows` are true, `columns` are said."""
    left, top = 52, 34
    size = min(40.0, (WIDTH - left - 4) / len(columns))
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    drawn = [f'<text class="soft" x="{left}" y="12">said \u2192, true \u2193</text>']
    for column, name in enumerate(columns):
        x = left + size * (column + 0.5)
        drawn.append(f'<text class="mid small" x="{x:.1f}" y="28">{text(name, max(2, int(size / 6)))}</text>')
    for row, name in enumerate(rows):
        y = top + size * row
        drawn.append(f'<text class="end small" x="{left - 4}" y="{y + size / 2 + 3:.1f}">{text(name, 8)}</text>')
        for column, share in enumerate(shares[row]):
            x, count = left + size * column, int(counts[row, column])
            if not count:
                continue
            drawn.append(
                f'<rect class="{kind} flat" x="{x:.1f}" y="{y:.1f}" width="{size:.1f}" height="{size:.1f}"'
                f' fill-opacity="{share:.3f}"><title>true {text(name, 60)}, said {text(columns[column], 60)}: {count:,}'
                "</title></rect>"
            )
            if size >= 22:
                ink = "on" if share > 0.55 else ""
                number = f"{count:,}" if count < 10_000 else f"{count / 1000:.0f}k"
                drawn.append(
                    f'<text class="mid small {ink}" x="{x + size / 2:.1f}" y="{y + size / 2 + 3:.1f}">{number}</text>'
                )
    across, down = left + size * len(columns), top + size * len(rows)
    lines = [f"M{left} {top + size * number:.1f}H{across:.1f}" for number in range(len(rows) + 1)]
    lines += [f"M{left + size * number:.1f} {top}V{down:.1f}" for number in range(len(columns) + 1)]
    drawn.append(f'<path class="grid" d="{"".join(lines)}"/>')
    return _svg(down + 4, label, drawn)


def density(
    true: NDArray[np.float64], said: NDArray[np.float64], span: tuple[float, float], label: str, kind: str
) -> str:
    """Predicted against true, as counts on a grid of 24 x 24; on the diagonal they are the same."""
    least, most = span
    counts, _, _ = np.histogram2d(np.clip(true, *span), np.clip(said, *span), bins=24, range=(span, span))
    left, side = 52, 288
    size, peak = side / 24, math.log1p(max(1.0, float(counts.max())))
    drawn = [f'<text class="soft" x="{left}" y="12">said \u2191, true \u2192</text>']
    drawn.append(f'<rect class="grid none" x="{left}" y="20" width="{side}" height="{side}"/>')
    for column, row in np.argwhere(counts):
        x, y, count = left + size * column, 20 + side - size * (row + 1), int(counts[column, row])
        drawn.append(
            f'<rect class="{kind} flat" x="{x:.1f}" y="{y:.1f}" width="{size:.1f}" height="{size:.1f}"'
            f' fill-opacity="{0.15 + 0.85 * math.log1p(count) / peak:.3f}"><title>{count:,} rows</title></rect>'
        )
    drawn.append(f'<line class="bound" x1="{left}" y1="{20 + side}" x2="{left + side}" y2="20"/>')
    drawn.append(f'<text class="small end" x="{left - 4}" y="{20 + side}">{least:.3g}</text>')
    drawn.append(f'<text class="small end" x="{left - 4}" y="29">{most:.3g}</text>')
    drawn.append(f'<text class="small" x="{left}" y="{34 + side}">{least:.3g}</text>')
    drawn.append(f'<text class="small end" x="{left + side}" y="{34 + side}">{most:.3g}</text>')
    return _svg(40 + side, label, drawn)


def histogram(old: Sequence[float], new: Sequence[float], low: float, high: float, label: str) -> str:
    """Two histograms over the same bins, side by side: shares of rows."""
    top, step = max([*old, *new, 1e-9]), (_RIGHT - _LEFT) / max(1, len(old))
    drawn = []
    for shares, kind, shift in ((old, "old", 0.08), (new, "new", 0.5)):
        for number, share in enumerate(shares):
            x, height = _LEFT + step * (number + shift), 80 * share / top
            drawn.append(
                f'<rect class="{kind} flat" x="{x:.1f}" y="{84 - height:.1f}" width="{0.4 * step:.1f}"'
                f' height="{height:.1f}"><title>{100 * share:.1f} %</title></rect>'
            )
    drawn.append(f'<line class="grid" x1="{_LEFT}" y1="84.5" x2="{_RIGHT}" y2="84.5"/>')
    drawn.append(f'<text class="soft" x="{_LEFT}" y="100">{low:.4g}</text>')
    drawn.append(f'<text class="soft end" x="{_RIGHT}" y="100">{high:.4g}</text>')
    return _svg(106, label, drawn)


def curve(points: Sequence[tuple[int, float]], label: str) -> str:
    """A line through (step, value)."""
    steps, values = [float(step) for step, _ in points], [value for _, value in points]
    least, most = _range(values)
    across, up = _scale(*_range(steps, 0), 52, _RIGHT), _scale(least, most, 130, 8)
    drawn = [
        f'<line class="grid" x1="52" y1="{up(tick):.1f}" x2="{_RIGHT}" y2="{up(tick):.1f}"/>'
        f'<text class="soft end" x="48" y="{up(tick) + 4:.1f}">{tick:.4g}</text>'
        for tick in _ticks(least, most)
    ]
    kept = points[:: max(1, len(points) // 400)]
    kept = [*kept, points[-1]]  # a thinned line ends where the whole one does
    line = " ".join(f"{across(float(step)):.1f},{up(value):.1f}" for step, value in kept)
    drawn.append(f'<polyline class="new none thick" points="{line}"/>')
    drawn.append(f'<text class="soft" x="52" y="148">step {int(min(steps)):,}</text>')
    drawn.append(f'<text class="soft end" x="{_RIGHT}" y="148">{int(max(steps)):,}</text>')
    return _svg(154, label, drawn)


def _svg(height: float, label: str, drawn: Iterable[str]) -> str:
    name = text(label, 200)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{name}">{"".join(drawn)}</svg>'


def _cap(x: float, y: float, there: bool) -> str:
    return f'<line class="thick" x1="{x:.1f}" y1="{y + 21}" x2="{x:.1f}" y2="{y + 31}"/>' if there else ""


def _range(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    """Least and most with some room, never the same; halves first, or the largest floats would overflow."""
    least, most = (min(values), max(values)) if values else (0.0, 1.0)
    room = pad * (most / 2 - least / 2) * 2 or (abs(least) / 10 or 1.0) * (least == most)
    return max(-1e300, min(1e299, least - room)), min(1e300, max(-1e299, most + room))


def _scale(least: float, most: float, start: float, end: float) -> Callable[[float], float]:
    span = most / 2 - least / 2
    return lambda value: start + (end - start) * min(1.0, max(0.0, (value / 2 - least / 2) / span if span else 0.5))


def _ticks(least: float, most: float) -> list[float]:
    """Three to six round numbers between; none where floats are too coarse for them."""
    span = most - least
    if not 0 < span < math.inf:
        return []
    power = 10.0 ** math.floor(math.log10(span / 4)) if span > 1e-300 else 0.0
    step = next((power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 5), 0.0) if power else 0.0
    if not step or least + step == least:
        return []
    first = math.ceil(least / step)
    return [(first + number) * step for number in range(6) if (first + number) * step <= most]


def _strokes(kind: str, x: float, top: float, rows: int) -> str:
    """A line down all rows that leaves out their names."""
    return f'<path class="{kind}" d="{"".join(f"M{x:.1f} {top + 40 * row + 18}v18" for row in range(rows))}"/>'


def _axis(
    least: float, most: float, place: Callable[[float], float], top: float, rows: int, shown: Callable[[float], str]
) -> str:
    lines = []
    for tick in _ticks(least, most):
        x = place(tick)
        side = "end" if x > WIDTH - 24 else "" if x < 24 else "mid"
        lines.append(_strokes("grid", x, top, rows))
        lines.append(f'<text class="soft {side}" x="{x:.1f}" y="{top + 40 * rows + 16}">{text(shown(tick), 12)}</text>')
    return "".join(lines)
