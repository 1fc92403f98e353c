"""The gate around the verdict: what models may answer, what they may reach, and what an owner's policies do."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.storage.servers import clean
from tests.support import powerless
from tests.train_model.world import SOURCES, World
from train_model import child, gate
from train_model.attempt import Attempt
from train_model.readers import Rows
from train_model.verdict import Said

ROWS = 300
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the locks are Linux's")

FOREIGN = """
import os, pathlib, sys, time
import numpy as np
import pandas as pd


class Model:
    def __init__(self, kind):
        self.kind = kind

    def predict(self, x, params=None):
        n = len(x)
        return {
            "right": lambda: np.where(np.asarray(x)[:, 0] > 0, "yes", "no"),
            "constant": lambda: np.full(n, "yes"),
            "nan": lambda: np.full(n, np.nan),
            "few": lambda: np.zeros(n - 1),
            "matrix": lambda: np.zeros((n, 3)),
            "objects": lambda: np.array([b"yes"] * n, dtype=object),
            "nested": lambda: np.array([{"a": [1]}] * n, dtype=object),
            "huge": lambda: np.zeros(10 * 2**30 // 8)[:n],
            "talks": self._talks,
            "dies": lambda: os.kill(os.getpid(), 11),
            "leaves": lambda: os._exit(3),
            "raises": lambda: 1 / 0,
            "hangs": lambda: time.sleep(600),
            "numbers": lambda: np.asarray(x)[:, 0] * 2,
            "infinite": lambda: np.where(np.arange(n) == 7, np.inf, 1.0),
            "frame": lambda: pd.DataFrame({"yes": np.full(n, 0.25), "no": np.full(n, 0.75)}),
            "array": lambda: np.tile([0.9, 0.1], (n, 1)),
            "no sum": lambda: pd.DataFrame({"yes": np.full(n, 0.5), "no": np.full(n, 0.6)}),
            "many": lambda: pd.DataFrame(np.full((n, 1500), 1 / 1500)),
            "twice": lambda: pd.DataFrame(np.full((n, 2), 0.5), columns=["yes", "yes"]),
        }[self.kind]()

    def _talks(self):
        print("x" * 10_000)
        os.write(1, b'{"labels": []}\\n')
        return np.full(300, "yes")


def _load_pyfunc(path):
    return Model((pathlib.Path(path) / "kind").read_text())
"""


def foreign(folder: Path, kind: str, module: str = "foreign", classes: list[str] | None = None) -> Path:
    """An MLflow model that is loaded by somebody's own module."""
    folder.mkdir(parents=True)
    (folder / "MLmodel").write_text(f"flavors: {{python_function: {{loader_module: {module}}}}}")
    (folder / "kind").write_text(kind)
    if classes is not None:
        (folder / "aegis_dataset.json").write_text(json.dumps({"classes": classes}))
    return folder


def rows_of(seed: int = 0) -> Rows:
    """Rows whose first column tells the class."""
    x = np.random.default_rng(seed).normal(size=(ROWS, 2))
    labels = np.where(x[:, 0] > 0, "yes", "no")
    return Rows(x, labels, np.full(ROWS, "", dtype="<U64"), (2,), ("a", "b"))


def judged_by(world: World, *, rows: Rows | None = None) -> None:
    """Evaluation data of the owner's, and a place for modules of somebody's own."""
    rows = rows or rows_of()
    folder = world.root / "data" / "judge"
    folder.mkdir(parents=True)
    lines = [f"{a},{b},{label}" for (a, b), label in zip(rows.features, rows.labels, strict=True)]
    (folder / "x.csv").write_text("a,b,target\n" + "\n".join(lines))
    (world.root / "own").mkdir()
    (world.root / "own" / "foreign.py").write_text(FOREIGN)
    world.env |= {
        "AEGIS_EVALUATION_URI": world.uri("data/judge"),
        "MLFLOW_TRACKING_URI": "",
        "PYTHONPATH": f"{SOURCES}:{world.root / 'own'}",
    }


def asked(folder: Path, what: str, kinds: dict[str, list[str] | None], seconds: int = 20) -> dict[str, Said | str]:
    """What models of these kinds answer to the gate, all in one process."""
    world = World(folder, "")
    judged_by(world)
    world.settings = {"gate": {"timeoutSeconds": seconds}}
    models = [foreign(folder / "models" / kind, kind, classes=classes) for kind, classes in kinds.items()]
    env = world.environment()
    work = folder / "work"
    work.mkdir()
    answers, _ = gate.ask(Attempt.from_env(env), env, rows_of(), models, work, what)
    return dict(zip(kinds, answers, strict=True))


LABELS = ("few", "matrix", "objects", "nan", "huge", "dies", "leaves", "raises", "hangs", "talks", "nested", "right")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Said | str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "memory_limit", lambda: 4 << 30)
        yield asked(tmp_path_factory.mktemp("labels"), "labels", dict.fromkeys(LABELS), seconds=15)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("few", "ValueError: it gave values of shape (299,), not one label for each of 300 rows"),
        ("matrix", "ValueError: it gave values of shape (300, 3), not one label for each of 300 rows"),
        ("objects", "TypeError: Object of type bytes is not JSON serializable"),
        ("nan", "ValueError: Out of range float values are not JSON compliant"),
        ("huge", "Unable to allocate 10.0 GiB"),
        ("dies", "the process that loaded it died by signal 11"),
        ("leaves", "it exited with code 3"),
        ("raises", "ZeroDivisionError: division by zero"),
        ("hangs", "it gave no answer in time (15 s)"),
    ],
)
def test_a_model_without_labels_says_why(labels: dict[str, Said | str], kind: str, said: str) -> None:
    answer = labels[kind]
    assert isinstance(answer, str)
    assert said in answer


def test_what_a_model_prints_is_no_answer_and_what_comes_after_a_broken_one_is_heard(
    labels: dict[str, Said | str],
) -> None:
    for kind, first in (("talks", "yes"), ("nested", "{'a': [1]}")):
        answer = labels[kind]
        assert isinstance(answer, Said), answer
        assert (len(answer.labels), answer.labels[0]) == (ROWS, first)
    assert isinstance(labels["right"], Said)
    assert (labels["right"].labels == rows_of().labels).all()


def test_numbers_are_finite_ones(tmp_path: Path) -> None:
    answers = asked(tmp_path, "numbers", dict.fromkeys(("numbers", "infinite", "constant")))
    assert isinstance(answers["numbers"], Said)
    assert np.array_equal(answers["numbers"].labels, rows_of().features[:, 0] * 2)
    assert answers["infinite"] == "it gave no number, or a vast one, in 1 of 300 rows"
    assert "could not convert string to float" in str(answers["constant"])


def test_probabilities_come_with_the_names_of_their_classes(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    from train_model.defaults import save

    named = {"array": ["no", "yes"], "matrix": ["no", "yes"], "constant": None}
    answers = asked(tmp_path, "probabilities", dict.fromkeys(("frame", "no sum", "many", "twice")) | named)
    frame, array = answers["frame"], answers["array"]
    assert isinstance(frame, Said)
    assert frame.classes is not None
    assert frame.classes.tolist() == ["yes", "no"]
    assert (frame.labels == "no").all()
    assert isinstance(array, Said)
    assert (array.labels == "no").all()
    assert answers["no sum"] == "what it gave are no probabilities (from 0 to 1, of sum 1) in 300 of 300 rows"
    assert answers["many"] == "its 1,500 classes are not different ones, 1,000 at most"
    assert answers["twice"] == "its 2 classes are not different ones, 1,000 at most"
    assert "its (300, 3) is not one column for each of the 2 classes" in str(answers["matrix"])
    assert "no predict_proba, no DataFrame with a column a class" in str(answers["constant"])

    rows, model = rows_of(), tmp_path / "sklearn"
    fitted = LogisticRegression().fit(rows.features, rows.labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own
        save(fitted, rows.features, model)
    env = World(tmp_path, "", env={"PYTHONPATH": SOURCES}).environment()
    work = tmp_path / "work2"
    work.mkdir()
    plain = Rows(rows.features, rows.labels, rows.slices, (2,), ())
    [answer], _ = gate.ask(Attempt.from_env(env), env, plain, [model], work, "probabilities")
    assert isinstance(answer, Said), answer
    assert answer.probabilities is not None
    assert np.array_equal(answer.probabilities, fitted.predict_proba(rows.features))


def packed(*values: float) -> str:
    return base64.b64encode(np.array(values, dtype="<f8").tobytes()).decode()


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("numbers", {"numbers": packed(1.0)}),
        ("numbers", {"numbers": "AAA"}),
        ("numbers", {"numbers": [1.0, 2.0]}),
        ("numbers", {}),
        ("probabilities", {"classes": ["a", "b"], "probabilities": packed(0.5, 0.5, 1)}),
        ("probabilities", {"classes": [], "probabilities": ""}),
        ("probabilities", {"classes": 3, "probabilities": packed(1.0, 1.0)}),
        ("probabilities", {"classes": ["a"], "probabilities": packed(1.5, 1.0)}),
        ("probabilities", {"classes": ["a"], "probabilities": packed(float("nan"), 1.0)}),
        ("probabilities", {"classes": ["a", "b"], "probabilities": packed(1.5, -0.5, 1.0, 0.0)}),
    ],
)
def test_a_forged_answer_is_none(what: str, answer: dict[str, Any]) -> None:
    assert isinstance(gate.said(json.dumps(answer).encode(), 2, what), str)


# --- the whole gate: reasons and policies


RIGHT = Said(rows_of().labels)
LAZY = Said(np.full(ROWS, "yes"))


@pytest.mark.parametrize(
    ("champion", "challenger", "settings", "reason", "words"),
    [
        (None, RIGHT, {}, "Accepted", "challenger 100.0 % on 300 rows, no champion yet"),
        (None, LAZY, {}, "NotBetter", "not clearly better than guessing"),
        (None, RIGHT, {"minRows": 301}, "NotEnoughData", "300 rows, at least 301 are needed"),
        (None, RIGHT, {"withoutChampion": "reject"}, "NoChampion", "only a person may bring in the first"),
        (LAZY, RIGHT, {"withoutChampion": "reject"}, "Accepted", "vs champion"),
        (LAZY, "it died", {}, "CannotPredict", "the challenger cannot predict: it died"),
        ("it died", RIGHT, {}, "ChampionBroken", "the champion cannot predict: it died"),
        ("it died", RIGHT, {"brokenChampion": "replace"}, "Accepted", "so it was not compared with: it died"),
        ("it died", LAZY, {"brokenChampion": "replace"}, "NotBetter", "so it was not compared with: it died"),
        ("it died", "it too", {"brokenChampion": "replace"}, "CannotPredict", "challenger cannot predict: it too"),
    ],
)
def test_every_end_has_a_reason(
    world: World, champion: Said | str | None, challenger: Said | str, settings: dict[str, Any], reason: str, words: str
) -> None:
    world.settings = {"gate": settings}
    attempt, rows = Attempt.from_env(world.environment()), rows_of()
    verdict = gate._judge(attempt, rows.labels, rows.slices, champion, challenger)
    assert (verdict.accept, verdict.reason) == (reason == "Accepted", reason)
    assert words in verdict.explanation


def test_a_model_that_answers_one_thing_only_is_no_better_than_guessing(world: World) -> None:
    judged_by(world)
    foreign(world.root / "out" / "model", "constant")
    world.settings = {"gate": {"minAccuracy": 0.9}, "maxAttempts": 10}
    end = world.call("gate")
    assert (end.code, end.out["verdict"], end.out["outcome"]) == (0, "reject", "Rejected:NotBetter"), end.text
    assert "not clearly better than guessing; below the floor of 90.0 %: " in end.out["explanation"]
    assert "needed below 0.005)" in end.out["explanation"]  # the level is shared among the attempts


def test_probabilities_are_judged_where_the_owner_asks_for_them(world: World) -> None:
    judged_by(world)
    foreign(world.root / "out" / "model", "frame")
    world.settings = {"gate": {"metric": "brier"}}
    end = world.call("gate")
    assert (end.code, end.out["outcome"]) == (0, "Rejected:Worse"), end.text
    assert "worse than guessing: brier of the challenger 0.5" in end.out["explanation"]


def test_a_champion_that_hangs_takes_no_time_from_the_challenger(world: World) -> None:
    judged_by(world)
    world.crown(foreign(world.root / "champion", "hangs"))
    foreign(world.root / "out" / "model", "right")
    world.settings = {"gate": {"timeoutSeconds": 5}}
    end = world.call("gate")
    assert (end.code, end.out["outcome"]) == (0, "Rejected:ChampionBroken"), end.text
    assert "the champion cannot predict: it gave no answer in time (5 s)" in end.out["explanation"]


def test_a_regression_is_judged_by_its_error(world: World) -> None:
    rows = rows_of()
    numbers = rows.features[:, 0] * 2 + 0.25
    judged_by(world, rows=Rows(rows.features, numbers, rows.slices, rows.shape, rows.columns))
    foreign(world.root / "out" / "model", "numbers")
    world.settings = {"trainer": {"task": "regression"}}
    end = world.call("gate")
    assert (end.code, end.out["outcome"]) == (0, "Accepted"), end.text
    assert end.out["explanation"].startswith(
        "mae of the challenger 0.25 on 300 rows, no champion yet; guessing gives 1."
    )


# --- what a hostile model finds

SPY = '''
import glob, os, signal, socket, stat
import numpy as np
from foreign import Model

SECRET = b"s3cr3t" + b"-store"


def attempts(root):
    """Everything that it tries; the words of what it could do."""
    found = []

    def can(word, act):
        try:
            if act() is not False:
                found.append(word)
        except (OSError, ValueError):
            pass

    me = str(os.getpid())
    can("secret in its environment", lambda: SECRET in b"".join(os.environb.values()))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if pid != me:
            where = "/proc/" + pid
            for name in ("environ", "maps"):
                can(f"{name} of {pid}", lambda: len(open(f"{where}/{name}", "rb").read(9)) > 0)
            can("memory of another", lambda: open(where + "/mem", "rb").close())
            can("descriptor of another", lambda: open(where + "/fd/0").close())
            if b"train_model.gate" in open(where + "/cmdline", "rb").read():
                can("signal to the gate", lambda: os.kill(int(pid), 0))
    for path in (*glob.glob(root + "/data/**", recursive=True), root + "/data/judge/x.csv", root + "/trusted",
                 root + "/credentials.json", root + "/models", "/etc/hostname"):
        can(f"file {path}", lambda: os.listdir(path) if os.path.isdir(path) else open(path).close())
    for fd in range(256):
        can(f"descriptor {fd}", lambda: stat.S_ISREG(os.fstat(fd).st_mode))
    for family in (socket.AF_INET, socket.AF_UNIX):
        can(f"socket {family}", lambda: socket.socket(family))
    can("change of its own model", lambda: open(root + "/out/model/kind", "w").close())
    can("file beside it", lambda: open(root + "/left", "w").close())
    return found


def _load_pyfunc(path):
    root = open(path + "/kind").read()
    print("FOUND", attempts(root), flush=True)
    with open(os.environ["TMPDIR"] + "/scratch", "w") as file:
        file.write("what it unpacks")
    return Model("right")
'''


@LINUX
def test_a_hostile_model_finds_no_label_no_credential_no_socket(world: World) -> None:
    judged_by(world)
    (world.root / "own" / "spy.py").write_text(SPY)
    (world.root / "credentials.json").write_text("{}")
    (world.root / "trusted").mkdir()
    foreign(world.root / "out" / "model", str(world.root), module="spy")
    world.env |= {"AWS_SECRET_ACCESS_KEY": "s3cr3t-store", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "train_model.gate"], env=world.environment(), cwd=world.root, timeout=120,
        capture_output=True, text=True, check=False, preexec_fn=powerless,
    )  # fmt: skip
    assert "Accepted: challenger 100.0 %" in done.stdout, done.stdout + done.stderr
    assert "FOUND []" in done.stdout, done.stdout


def script(code: str) -> str:
    """What a program of these lines prints, run by a user without privileges."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean({"PYTHONPATH": SOURCES, "WORD": "s3cr3t"}), timeout=60,
        capture_output=True, text=True, check=False, preexec_fn=powerless,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@LINUX
def test_a_hidden_process_shows_its_children_neither_environment_nor_memory() -> None:
    assert (
        script(
            "import os, subprocess, sys\n"
            "from train_model.sandbox import hidden\n"
            "look = '''\n"
            "import os\n"
            "for name in ('environ', 'mem', 'fd/0'):\n"
            "    path = f'/proc/{os.getppid()}/{name}'\n"
            "    try:\n"
            "        open(path, 'rb').close()\n"
            "        print('open', end=' ')\n"
            "    except PermissionError:\n"
            "        print('shut', end=' ')\n"
            "'''\n"
            "with hidden():\n"
            "    subprocess.run([sys.executable, '-c', look])\n"
            "subprocess.run([sys.executable, '-c', look])\n"
        ).split()
        == ["shut"] * 3 + ["open"] * 3
    )


@LINUX
def test_a_process_left_with_one_folder_reads_and_writes_there_and_nowhere_else(tmp_path: Path) -> None:
    inside, other = tmp_path / "inside", tmp_path / "other"
    for folder in (inside, other):
        folder.mkdir()
        (folder / "file").write_text("x")
    done = subprocess.run(
        [sys.executable, "-c", (
            "import pathlib, sys, sqlite3\n"
            "from train_model.sandbox import only\n"
            "if not only([], [pathlib.Path(sys.argv[1])]):\n    sys.exit('no such lock')\n"
            "for folder in sys.argv[1:]:\n"
            "    for act in (lambda p: p.read_text(), lambda p: p.write_text('y'), lambda p: p.unlink()):\n"
            "        try:\n            act(pathlib.Path(folder) / 'file')\n            print('done', end=' ')\n"
            "        except OSError as error:\n            print(type(error).__name__, end=' ')\n"
            "import sklearn\n"
        ), str(inside), str(other)],
        env=clean({"PYTHONPATH": SOURCES}), cwd="/", timeout=60, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "no such lock" in done.stderr:
        pytest.skip("this kernel has no Landlock")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"] * 3 + ["PermissionError"] * 3
