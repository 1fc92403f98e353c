"""What becomes of trainers of all kinds: good ones in any language, and those that hang, fork, fill, print and flee."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis import manifest
from tests.support import powerless, until
from tests.train_model import datasets
from train_model import child, trainer
from train_model.attempt import TrainerSettings
from train_model.step import TrainerFailed
from train_model.trainer import Live

OLD, _, _ = datasets.digits()
ROOMS = ":".join(str(Path(__file__).parents[2] / room) for room in ("shared", "steps"))
ENV = {"PATH": os.environ["PATH"], "PYTHONPATH": ROOMS, "AWS_SECRET_ACCESS_KEY": "hunter2-aws", "AEGIS_SETTINGS": "x"}
MIB = 1 << 20


@pytest.fixture
def given_data(tmp_path: Path) -> Path:
    """IN, as fetch leaves it."""
    source = tmp_path / "in"
    (source / "train").mkdir(parents=True)
    np.savez(source / "train" / "data.npz", X=OLD.features, y=OLD.labels)
    about = {"classes": list(range(10)), "columns": [], "shape": [64], "rows": len(OLD.labels), "task": "image"}
    (source / "train" / "dataset.json").write_text(json.dumps(about))
    (source / "params.json").write_text(json.dumps({"seed": 1, "task": "image", "params": {"iterations": 8}}))
    (source / "event.json").write_text("{}")
    return source


def script(folder: Path, text: str) -> TrainerSettings:
    """A trainer that is this Python program, given 20 seconds."""
    path = folder / "mine.py"
    head = "import os, sys, time, pathlib\nMIB = os.urandom(1 << 20)\nIN, OUT = map(pathlib.Path, sys.argv[1:])\n"
    path.write_text(head + textwrap.dedent(text))
    return TrainerSettings(command=(sys.executable, str(path)), timeout_seconds=20)


def run(settings: TrainerSettings, source: Path, **more: Any) -> Path:
    made = source.parent / "work" / "out"
    trainer.run(settings, source, made, ENV, {}, **more)
    return made


def fails(settings: TrainerSettings, source: Path) -> TrainerFailed:
    with pytest.raises(TrainerFailed) as caught:
        run(settings, source)
    return caught.value


MODEL = """
(OUT / "model").mkdir()
(OUT / "model" / "MLmodel").write_text("flavors: {}")
"""


def test_our_own_leaves_a_model_its_metrics_and_its_curve(given_data: Path) -> None:
    made = run(TrainerSettings(), given_data)
    assert (made / "model" / "MLmodel").is_file()
    assert trainer.metrics(made / "metrics.json")["train_accuracy"] > 0.9
    points = Live(made / "metrics.jsonl").new()
    assert [(p.name, p.step) for p in points] == [("loss", n) for n in range(1, 9)]
    assert points[-1].value < points[0].value


def test_the_same_inputs_and_seed_give_the_same_bytes(given_data: Path) -> None:
    digests = []
    for seed in (1, 1, 2):
        parameters = {"seed": seed, "task": "image", "params": {"iterations": 3}}
        (given_data / "params.json").write_text(json.dumps(parameters))
        digests.append(manifest.root_digest(manifest.walk(run(TrainerSettings(), given_data) / "model")))
        shutil.rmtree(given_data.parent / "work")
    assert digests[0] == digests[1] != digests[2]


def test_a_trainer_may_be_a_shell_script(given_data: Path) -> None:
    path = given_data.parent / "train.sh"
    path.write_text('set -eu\nmkdir "$2/model"\necho "flavors: {}" > "$2/model/MLmodel"\ntest -r "$1/train/data.npz"\n')
    assert (run(TrainerSettings(command=("sh", str(path))), given_data) / "model" / "MLmodel").is_file()


def test_it_sees_no_variable_but_what_finds_its_programs(given_data: Path) -> None:
    settings = script(given_data.parent, MODEL + "(OUT / 'failure').write_text(' '.join(sorted(os.environ)))")
    seen = set((run(settings, given_data) / "failure").read_text().split())
    assert seen <= {*child.KEPT, *child.PINNED, "HOME", "TMPDIR", "LC_CTYPE"}


HOSTILE = """
import ctypes
seen = {}
def tries(name, act):
    try:
        seen[name] = str(act())
    except OSError as error:
        seen[name] = type(error).__name__
tries("write", lambda: (OUT.parents[1] / "elsewhere").write_text("x"))
tries("overwrite", lambda: (IN / "event.json").write_text("x"))
tries("link", lambda: os.link(IN / "event.json", OUT / "link"))
tries("parent", lambda: pathlib.Path(f"/proc/{PARENT}/environ").read_bytes())
tries("memory", lambda: open(f"/proc/{PARENT}/mem", "rb").read(1))
tries("kill", lambda: os.kill(PARENT, 0))
tries("shared", lambda: pathlib.Path("/dev/shm/aegis-test").write_text("x"))
tries("remove", lambda: pathlib.Path("/dev/shm/aegis-test").unlink())
(OUT / "failure").write_text(repr(seen))
"""


RUNS = """
import os, sys
from pathlib import Path
from train_model import trainer
from train_model.attempt import TrainerSettings
settings = TrainerSettings(command=(sys.executable, sys.argv[1], str(os.getpid())), timeout_seconds=20)
trainer.run(settings, Path(sys.argv[2]), Path(sys.argv[3]), os.environ, {})
"""


def test_it_writes_nowhere_else_and_sees_no_process_outside(given_data: Path) -> None:
    path, made = given_data.parent / "mine.py", given_data.parent / "work" / "out"
    head = "import os, sys, pathlib\nPARENT = int(sys.argv[1])\nIN, OUT = map(pathlib.Path, sys.argv[2:])\n"
    path.write_text(head + MODEL + HOSTILE)
    arguments = [sys.executable, "-c", RUNS, *map(str, (path, given_data, made))]
    done = subprocess.run(
        arguments, env=ENV, timeout=60, capture_output=True, text=True, check=False, preexec_fn=powerless
    )
    assert done.returncode == 0, done.stderr
    seen = ast.literal_eval((made / "failure").read_text())
    assert seen.pop("kill") in ("None", "PermissionError")  # from Linux 6.12 on it is refused
    assert seen == dict.fromkeys(("write", "overwrite", "parent", "memory"), "PermissionError") | {
        "link": "OSError",
        "shared": "1",
        "remove": "None",
    }


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("raise ValueError('no luck')", "Crashed", "exit code 1: ValueError: no luck"),
        ("(OUT / 'failure').write_text('labels\\nlook dealt'); sys.exit(3)", "Crashed", "3: labels look dealt"),
        ("os.kill(os.getpid(), 9)", "Killed", "signal 9"),
        ("pass", "BadModel", "OUT/model is no folder"),
        ("(OUT / 'failure').write_text('no rows of 7')", "BadModel", "it says: no rows of 7"),
        ("(OUT / 'model').mkdir()", "BadModel", "MLmodel is not there"),
        (MODEL + "(OUT / 'model' / 'x').symlink_to('/etc/passwd')", "BadModel", "x is no regular file"),
        (MODEL + "os.mkfifo(OUT / 'model' / 'x')", "BadModel", "x is no regular file"),
        (MODEL + "(OUT / 'model' / 'aegis_dataset.json').touch()", "BadModel", "not the trainer's to write"),
        (MODEL + "[(OUT / 'model' / str(n)).touch() for n in range(1200)]", "BadModel", "more than 1000 files"),
        ("(OUT / 'model').symlink_to('/etc')", "BadModel", "OUT/model is no folder"),
    ],
)  # fmt: skip
def test_how_it_failed_is_said_in_words(given_data: Path, text: str, reason: str, said: str) -> None:
    failed = fails(script(given_data.parent, text), given_data)
    assert failed.reason == reason
    assert said in failed.message


def alive(mark: str) -> list[int]:
    """Processes whose command line holds a mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    """A word for command lines; whatever still bears it in the end is killed."""
    word = f"mark-{tmp_path.name}-{os.getpid()}"
    yield word
    for pid in alive(word):
        os.kill(pid, signal.SIGKILL)


def test_one_that_hangs_is_ended(given_data: Path) -> None:
    settings = replace(script(given_data.parent, "time.sleep(600)"), timeout_seconds=1)
    failed = fails(settings, given_data)
    assert (failed.reason, failed.message) == ("Timeout", "the trainer was ended: it did not end within 1 s")


def test_what_it_started_ends_with_it_though_it_fled_into_a_session_of_its_own(given_data: Path, mark: str) -> None:
    text = f"""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sh", ["sh", "-c", "sleep 600; : {mark}"])
        os._exit(0)
    while not any(b"{mark}" in p.read_bytes() for p in pathlib.Path("/proc").glob("[0-9]*/cmdline") if p.exists()):
        time.sleep(0.01)
    """
    assert fails(script(given_data.parent, text), given_data).reason == "BadModel"
    until(lambda: not alive(mark))


def test_one_that_forks_without_end_is_ended(given_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAX_PROCESSES", 20)
    text = "for _ in range(40):\n    if os.fork() == 0:\n        time.sleep(600)\ntime.sleep(600)"
    assert fails(script(given_data.parent, text), given_data).reason == "TooManyProcesses"


@pytest.mark.parametrize(
    "text",
    [
        "data = b'x' * (600 << 20)",  # one process: the kernel refuses it
        "data = []\nfor n in range(600):\n    data.append(os.urandom(1 << 20))\ntime.sleep(600)",
        # each alone would be within the bound
        "for _ in range(3):\n    if os.fork() == 0:\n        data = os.urandom(150 << 20); break\ntime.sleep(600)",
    ],
)  # fmt: skip
def test_one_that_eats_memory_is_ended_with_that_reason(
    given_data: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "memory_limit", lambda: 300 * MIB)
    failed = fails(script(given_data.parent, text), given_data)
    assert failed.reason == "OutOfMemory", failed.message


@pytest.mark.parametrize(
    "text",
    [
        "f = open(OUT / 'big', 'wb')\nfor _ in range(200):\n    f.write(b'x' * (1 << 20)); f.flush()",
        "for n in range(40):\n    (OUT / str(n)).write_bytes(os.urandom(1 << 20))\ntime.sleep(600)",
        "for n in range(40):\n    (OUT / 'checkpoint' / str(n)).write_bytes(os.urandom(1 << 20))\ntime.sleep(600)",
        "os.chdir(os.environ['TMPDIR'])\nfor n in range(40):\n    open(str(n), 'wb').write(MIB)\ntime.sleep(9)",
    ],
)  # fmt: skip
def test_one_that_fills_the_disk_is_ended_with_that_reason(given_data: Path, text: str) -> None:
    settings = replace(script(given_data.parent, text), disk_mib=30)
    with pytest.raises(TrainerFailed) as caught:
        run(settings, given_data, checkpoint=given_data.parent / "kept")
    assert caught.value.reason == "DiskFull", caught.value.message


def test_a_gigabyte_of_output_costs_neither_disk_nor_memory(
    given_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (
        MODEL + "line = b'x' * 1023 + b'\\n'\nfor _ in range(1 << 10):\n    os.write(1, line * 1024)\nprint('the end')"
    )
    settings = replace(script(given_data.parent, text), disk_mib=30, timeout_seconds=120)
    run(settings, given_data)
    shown = capfd.readouterr().out
    assert len(shown) < child.SHOWN + 2 * child.LINE
    assert shown.endswith("... the rest of the output is not shown ...\n")


def test_no_secret_of_ours_that_it_prints_gets_further(given_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "print('key hunter2-aws, http://me:hunter2@host/', 'y' * 8170, 'hunter2-aws', flush=True)\nsys.exit(2)"
    failed = fails(script(given_data.parent, text), given_data)
    assert "hunter2" not in capfd.readouterr().out + failed.message


def test_half_a_secret_at_the_end_of_a_line_that_is_cut_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    for before in range(child.LINE - 30, child.LINE + 3):
        with child.Log({"A_SECRET": "hunter2-hunter2"}) as log:
            os.write(log.fileno(), b"x" * before + b" hunter2-hunter2 then\nnext\n")
            log.close()
        shown = capfd.readouterr().out
        assert "hunt" not in shown and "ter2" not in shown, before  # noqa: PT018 - one question
        assert log.tail().endswith("next")


# --- what it leaves is read with care


@given(st.lists(st.binary(max_size=60)))
def test_whatever_lines_a_curve_has_the_answer_is_points(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("curve") / "x"
    path.write_bytes(b"\n".join(lines) + b"\n" + b'{"step": 4, "loss": 0.5}\n')
    assert Live(path).new()[-1][:3] == ("loss", 0.5, 4)


def test_a_line_is_read_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    live = Live(path, clock=lambda: 7.0)
    assert live.new() == []
    with path.open("a") as file:
        file.write('{"step": 1, "loss": 2}\n{"step": 2, "lo')
        file.flush()
        assert live.new() == [("loss", 2.0, 1, 7000)]
        file.write('ss": 1, "text": "x", "bad\\u202e": 1, "nan": NaN}\n[1]\n{"step": "3", "loss": 0}\n')
    assert live.new() == [("loss", 1.0, 2, 7000)]


def test_a_curve_without_end_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n' * 20_000)
    live, found = Live(path), 0
    while points := live.new():
        found += len(points)
    assert found == trainer.MAX_POINTS


@given(st.binary(max_size=200) | st.sampled_from([b"[" * 100_000, b'{"a": 1e999, "b": 2, "c": true}']))
def test_whatever_metrics_are_there_the_answer_is_finite_numbers(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.json"
    path.write_bytes(text)
    assert all(np.isfinite(value) for value in trainer.metrics(path).values())


def test_a_report_is_taken_only_if_it_is_plain_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "report"
    assert trainer.report(folder) is None
    folder.mkdir()
    (folder / "page.html").write_text("x" * 100)
    assert trainer.report(folder) == folder
    monkeypatch.setattr(trainer, "MAX_REPORT", 50)
    assert trainer.report(folder) is None
    monkeypatch.setattr(trainer, "MAX_REPORT", 1000)
    (folder / "link").symlink_to("/etc/passwd")
    assert trainer.report(folder) is None
    shutil.rmtree(folder)
    folder.symlink_to("/etc")
    assert trainer.report(folder) is None


# --- killed and resumed


@pytest.mark.parametrize(("task", "passes", "looks"), [("image", 8, 8), ("table", 80, 4), ("regression", 80, 4)])
def test_killed_at_any_pass_and_resumed_it_ends_with_the_same_model(
    given_data: Path, task: str, passes: int, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {"seed": 1, "task": task, "params": {"iterations": passes, "checkpointSeconds": 0}}
    (given_data / "params.json").write_text(json.dumps(parameters))
    np.savez(given_data / "train" / "data.npz", X=OLD.features[:300], y=OLD.labels[:300])
    made = run(TrainerSettings(), given_data)
    whole = predictions(made, given_data)
    assert len((made / "metrics.jsonl").read_text().splitlines()) == looks
    monkeypatch.setattr(child, "TICK_S", 0.005)
    rng, kills = np.random.default_rng(5), 0
    while True:
        shutil.rmtree(given_data.parent / "work")
        survives = int(rng.integers(1, 3))

        def dies(survives: int = survives) -> None:
            out = given_data.parent / "work" / "out"
            curve = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
            if len(curve) >= survives and not (out / "metrics.json").exists():
                raise KeyboardInterrupt

        try:
            made = run(TrainerSettings(), given_data, checkpoint=given_data.parent / "kept", tick=dies)
            break
        except KeyboardInterrupt:
            kills += 1
            assert kills < 20
    assert kills
    curve = made / "metrics.jsonl"  # not there if all passes were done before the last kill
    told = curve.read_text().splitlines() if curve.exists() else []
    assert len(told) < looks, "the last one went on, it did not begin anew"
    assert (predictions(made, given_data) == whole).all()


def predictions(made: Path, source: Path) -> Any:
    """Every number that the model gives."""
    import skops.io

    from train_model.predict import TRUSTED

    model = skops.io.load(made / "model" / "model.skops", trusted=list(TRUSTED))
    with np.load(source / "train" / "data.npz") as data:
        return model.predict_proba(data["X"]) if hasattr(model, "predict_proba") else model.predict(data["X"])
