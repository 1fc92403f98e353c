"""A trainer's contract, seen from outside: what it is given, how it is bounded, what of it is believed.

Files in, files out, for any language; `docs/trainers.md` has it in full. The trainer may be anybody's code: each way
in which it can end badly is a `TrainerFailed` with a word for the ledger and words for people. No MLflow in here.
"""

from __future__ import annotations

import json
import math
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from aegis.names import printable
from aegis.step import redact
from train_model import child
from train_model.attempt import TrainerSettings
from train_model.dataset import RECORD
from train_model.step import TrainerFailed

DEFAULT = "train_model.defaults:default"
MAX_MODEL_FILES = 1000
MAX_METRICS = 100
MAX_POINTS = 10_000
"""Of a live curve: more than a screen shows, and a trainer that writes in a tight loop does not fill the server."""
MAX_REPORT_FILES, MAX_REPORT = 100, 50 << 20
MAX_FAILURE, CHUNK = 4096, 1 << 20
_METRIC = re.compile(r"[\w./ -]{1,100}", re.ASCII)
_MEMORY = re.compile(r"MemoryError|bad_alloc|Cannot allocate memory|OutOfMemory|out of memory")
_DISK = re.compile(r"File too large|No space left on device|Disk quota exceeded")


class Point(NamedTuple):
    """One value of a live metric: `step` as the trainer counts, `ms` since the epoch when we read it."""

    name: str
    value: float
    step: int
    ms: int


def command(settings: TrainerSettings, source: Path, made: Path, writable: Sequence[Path]) -> list[str | Path]:
    """How the trainer is started: IN and OUT are its last two arguments, and it writes nowhere but where it may."""
    own = settings.command or child.module("train_model.defaults", settings.module or DEFAULT)
    return [*child.module("train_model.sandbox", *writable, "--"), *own, source, made]


def run(
    settings: TrainerSettings,
    source: Path,
    made: Path,
    env: Mapping[str, str],
    extra: Mapping[str, str],
    *,
    checkpoint: Path | None = None,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run the trainer on the folder IN (`source`); OUT (`made`) then holds a usable model; else `TrainerFailed`.

    Of `env` it gets nothing but what finds its programs, and `extra`. Its checkpoints go to `checkpoint`, if one is
    given, else they stay in OUT.
    """
    made.mkdir(parents=True, exist_ok=True)
    if checkpoint:
        checkpoint.mkdir(parents=True, exist_ok=True)
        (made / "checkpoint").symlink_to(checkpoint)
    else:
        (made / "checkpoint").mkdir()
    bounds = child.Bounds(settings.timeout_seconds, child.memory_limit(), settings.disk_mib << 20)
    killed = child.oom_kills()
    safe = child.environment(env, made.parent, extra)
    folders = [made.parent, *([checkpoint] if checkpoint else [])]
    with child.Log(env) as log:
        argv = command(settings, source, made, folders)
        with child.started(argv, safe, log, cwd=made.parent, memory=bounds.memory, disk=bounds.disk) as process:
            breach = child.watch(process, bounds, folders, tick)
        log.close()
        if breach:
            raise TrainerFailed(breach.reason, f"the trainer was ended: {breach.said}")
        if process.returncode:
            raise _ended(process.returncode, log.tail(), told(made, env), child.oom_kills() > killed)
    usable(made, told(made, env))


def told(made: Path, env: Mapping[str, str]) -> str:
    """What the trainer itself wrote about its failure, if anything."""
    try:
        with (made / "failure").open("rb") as file:
            return printable(" ".join(redact(file.read(MAX_FAILURE).decode(errors="replace"), env).split()))[:500]
    except OSError:
        return ""


def _ended(code: int, said: str, failure: str, oom: bool) -> TrainerFailed:
    number = code - 128 if code > 128 else -code if code < 0 else 0
    how = f"signal {number}" if number else f"exit code {code}"
    last = failure or (said.splitlines()[-1][:500] if said else "it said nothing")
    reason = "Killed" if number else "Crashed"
    if oom or _MEMORY.search(last):
        reason = "OutOfMemory"
    elif _DISK.search(last) or number == 25:  # SIGXFSZ
        reason = "DiskFull"
    return TrainerFailed(reason, f"the trainer ended with {how}: {last}")


def usable(made: Path, failure: str = "") -> None:
    """`TrainerFailed` unless there is a model directory to go on with: its form; the gate asks whether it predicts.

    `failure` is what the trainer itself said of it.
    """
    if faults := model_faults(made / "model"):
        faults += [f"it says: {failure}"] if failure else []
        raise TrainerFailed("BadModel", f"the trainer left no usable model: {'; '.join(faults)}")


def model_faults(model: Path) -> list[str]:
    """What is wrong with the form of a model directory."""
    if model.is_symlink() or not model.is_dir():
        return ["OUT/model is no folder"]
    if (model / "MLmodel").is_symlink() or not (model / "MLmodel").is_file():
        return ["model/MLmodel is not there"]
    paths = list(model.rglob("*"))
    odd = [p for p in paths if not stat.S_ISREG(mode := p.lstat().st_mode) and not stat.S_ISDIR(mode)]
    faults = [f"{p.relative_to(model)} is no regular file" for p in odd[:10]]
    if len(paths) > MAX_MODEL_FILES:
        faults.append(f"more than {MAX_MODEL_FILES} files")
    if (model / RECORD).exists() or (model / "registered_model_meta").exists():
        faults.append(f"{RECORD} and registered_model_meta are not the trainer's to write")
    return faults


def metrics(path: Path) -> dict[str, float]:
    """The finite numbers of metrics.json, if the trainer left one; the rest is ignored."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(1 << 20))
    except (OSError, ValueError, RecursionError):
        return {}
    return dict(list(_numbers(found).items())[:MAX_METRICS])


def _numbers(found: object) -> dict[str, float]:
    items = found.items() if isinstance(found, dict) else ()
    return {
        name: float(value)
        for name, value in items
        if type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value) and _METRIC.fullmatch(name)
    }


class Live:
    """The lines that a trainer appends to metrics.jsonl while it works: {"step": 3, "loss": 0.2}."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._at = 0
        self._room = MAX_POINTS

    def new(self) -> list[Point]:
        """What is new since the last call; a line that is no such object is left out."""
        found: list[Point] = []
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                lines = file.read(CHUNK).split(b"\n")
        except OSError:
            return []
        ms = int(self._clock() * 1000)
        for line in lines[:-1]:  # what follows the last line end is still being written
            self._at += len(line) + 1
            found += self.points(line, ms)
        if len(lines) == 1 and len(lines[0]) == CHUNK:  # a line without an end is no line
            self._at += CHUNK
        kept = found[: self._room]
        self._room -= len(kept)
        return kept

    @staticmethod
    def points(line: bytes, ms: int) -> list[Point]:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            return []
        step = document.pop("step", 0) if isinstance(document, dict) else None
        if type(step) is not int or not 0 <= step < 1 << 53:
            return []
        return [Point(name, value, step, ms) for name, value in _numbers(document).items()]


def report(folder: Path) -> Path | None:
    """The folder of pages that the trainer wants to be shown, if it is a plain and small one."""
    if folder.is_symlink() or not folder.is_dir():
        return None
    paths = list(folder.rglob("*"))
    modes = [p.lstat() for p in paths]
    plain = all(stat.S_ISREG(seen.st_mode) or stat.S_ISDIR(seen.st_mode) for seen in modes)
    if not paths or not plain or len(paths) > MAX_REPORT_FILES or sum(seen.st_size for seen in modes) > MAX_REPORT:
        return None
    return folder
