"""`aegis trainer check` names what is wrong with a trainer, all of it at once, and says what to do."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aegis_cli import main, trial
from train_model import child, trainer

from .conftest import Aegis, Done

ROOT = Path(__file__).parents[2]
TRAINER = '''\
import json, os, time
from pathlib import Path
import numpy as np

LOADER = """
import numpy as np
{imports}

class Model:
    def predict(self, rows, params=None):
        rows, classes = np.asarray(rows), np.array(CLASSES)
        return {predict}

def _load_pyfunc(path):
    return Model()
"""

def train(source, target):
    given = json.loads((source / "params.json").read_text())
    about = json.loads((source / "train" / "dataset.json").read_text())
    model = target / "model"
    (model / "code").mkdir(parents=True)
    (model / "data").mkdir()
    (model / "MLmodel").write_text("flavors: {{python_function: {{loader_module: loader, code: code, data: data}}}}")
    loader = LOADER.replace("CLASSES", repr(about["classes"]))
{body}
    (model / "code" / "loader.py").write_text(loader)
'''
"""A trainer without any learning: its model answers by one expression."""


CONSTANT = "classes[[0] * len(rows)]"
Tried = Callable[..., Done]


@pytest.fixture
def tried(aegis: Aegis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tried:
    """Check a trainer in the current folder whose model predicts so, and which does `body` besides."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str, predict: str = CONSTANT, body: str = "", imports: str = "") -> Done:
        text = TRAINER.format(predict=predict, body=textwrap.indent(textwrap.dedent(body), "    "), imports=imports)
        Path("mine.py").write_text(text)
        return aegis("trainer", "check", "--module", "mine:train", *options)

    return run


def found(done: Done, state: str) -> list[str]:
    """What has this state, with its advice."""
    return [text.strip() for text in re.findall(rf"^  {state} +(.*(?:\n +-> .*)?)", done.out, re.MULTILINE)]


def test_all_breaches_are_named_at_once_each_with_what_to_do(tried: Tried) -> None:
    body = """
    kept = target / "checkpoint" / "last"
    loader = loader.replace("[0]", "[1]") if kept.exists() else loader
    kept.write_text("so far")
    (model / "weights.pkl").touch()
    np.save(model / "data" / "w.npy", np.array([{}]), allow_pickle=True)
    (target / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\\nepoch 2\\n{"step": 3}\\n')
    (target / "metrics.json").write_text('["high"]')
    (target / "report").mkdir()
    (target / "report" / "page.html").symlink_to("/etc/passwd")
    """
    done = tried(predict="np.array([[0]]).repeat(len(rows))", body=body)
    assert done.code == 70
    breaches = found(done, "BREACH")
    for said in (
        "metrics.jsonl: 2 of 3 lines are no points, first line 2",
        "OUT/report is not taken",
        "model/data/w.npy: pickle by its content",
        "model/weights.pkl: pickle family by its name",
        "it gives classes that the data does not have: 0",
        "the training goes on from the checkpoint last, and gives other predictions in the end",
    ):
        assert [text for text in breaches if said in text and "-> " in text], f"{said} is not in {done.out}"
    assert len(breaches) == 6
    warnings = found(done, "warning")
    for said in ("metrics.json holds no number", "no signature", "no requirements.txt"):
        assert [text for text in warnings if said in text and "-> " in text], said
    assert done.out.endswith("breaches: 6, warnings: 3\n")


def test_chance_is_noticed_by_a_second_run_and_guessing_by_the_rows_that_judge(tried: Tried) -> None:
    guess = "classes[np.random.default_rng(SEED).integers(len(classes), size=len(rows))]"
    done = tried(predict=guess, body='loader = loader.replace("SEED", str(os.getpid()))')
    assert done.code == 0
    warnings = " ".join(found(done, "warning"))
    assert "two runs with the same data and seed gave other predictions" in warnings
    assert "not surely better than guessing" in warnings


@pytest.mark.parametrize(
    ("given", "said", "advice"),
    [
        ({"body": "raise ValueError('no luck')"}, "Crashed: the trainer ended with exit code 1: ValueError: no", ""),
        ({"body": "(model / 'MLmodel').unlink()"}, "BadModel: the trainer left no usable", "save an MLflow model"),
        ({"body": "(source.parent / 'x').touch()"}, "Crashed: ", "write to OUT and TMPDIR only"),
        ({"body": "(source / 'x').touch()"}, "Crashed: ", "write to OUT and TMPDIR only"),
        ({"imports": "import mine"}, "No module named 'mine'", "has to be there or in the model"),
        ({"predict": "rows"}, "not one label for each of 400 rows", "one label for each row"),
    ],
)  # fmt: skip
def test_one_that_leaves_nothing_to_go_on_with(tried: Tried, given: dict[str, str], said: str, advice: str) -> None:
    done = tried(**given)
    assert done.code == 70
    [breach] = found(done, "BREACH")
    assert said in breach
    assert advice in breach.partition("-> ")[2]


def test_one_that_hangs_is_ended(tried: Tried) -> None:
    done = tried("--timeout", "1", body="time.sleep(600)")
    assert (done.code, len(found(done, "BREACH"))) == (70, 1)
    assert "Timeout: the trainer was ended: it did not end within 1 s" in done.out


def test_a_changed_input_is_noticed_where_the_system_cannot_keep_it(
    tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trainer,
        "command",
        lambda own, source, made, _: [*child.module("train_model.defaults", own.module), source, made],
    )
    done = tried(body="(source / 'x').touch()")
    assert (done.code, [text.partition("\n")[0] for text in found(done, "BREACH")]) == (70, ["it changed files in IN"])


def test_data_of_one_s_own_is_fetched_and_split_as_a_retrain_does(tried: Tried) -> None:
    rng = np.random.default_rng(0)
    np.savez("few.npz", X=rng.random((20, 3)), y=rng.integers(2, size=20))
    done = tried("--data", "few.npz")
    assert done.code == 65
    assert "at least 50 are needed" in done.err
    np.savez("some.npz", X=rng.random((300, 3)), y=rng.integers(2, size=300))
    done = tried("--data", "some.npz", "--keep", "kept")
    assert done.code == 0
    assert "not enough data" in found(done, "note")[1]
    assert Path("kept/in/train/data.npz").is_file()
    assert tried("--keep", "kept").code == 64  # is not emptied for it


def test_a_parameter_is_json_where_it_can_be(tried: Tried) -> None:
    body = "(target / 'failure').write_text(json.dumps(given['params'])); raise SystemExit(1)"
    done = tried("--param", "rate=0.5", "--param", "kind=wide", body=body)
    assert 'exit code 1: {"kind": "wide", "rate": 0.5}' in done.out


@pytest.mark.parametrize("words", [["--module", "mine:train", "--", "sh"], ["--module", "mine"], ["--param", "x"]])
def test_wrong_usage_is_told_apart_from_a_bad_trainer(aegis: Aegis, words: list[str]) -> None:
    try:
        code = aegis("trainer", "check", *words).code
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 64


def test_there_is_advice_for_every_reason_here_and_in_the_page() -> None:
    code = "".join((ROOT / "steps/train_model" / name).read_text() for name in ("child.py", "trainer.py"))
    reasons = set(re.findall(r'(?:Breach\(|TrainerFailed\(|reason = (?:"\w+" if \w+ else )?)"(\w+)"', code))
    reasons |= set(re.findall(r'reason = "(\w+)" if', code))
    assert reasons == trial.ADVICE.keys()
    page = (ROOT / "docs/trainers.md").read_text()
    assert [reason for reason in sorted(reasons) if f"| `{reason}` |" not in page] == []


def test_the_page_s_first_trainer_passes_as_the_page_shows(
    aegis: Aegis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/trainers.md").read_text()
    [text] = re.findall(r"```python\n(# mine.py\n.*?)```", page, re.DOTALL)
    [words, shown] = re.findall(r"```\n\$ aegis (trainer check .*?)\n(.*?)```", page, re.DOTALL)[0]
    Path("mine.py").write_text(text)
    done = aegis(*words.split())
    assert done.code == 0, done.out

    def states(told: str) -> list[str]:
        return re.findall(r"^  (ok|note|warning|BREACH) ", told, re.MULTILINE)

    assert states(done.out) == states(shown)


def test_every_command_of_the_page_is_one() -> None:
    lines = re.findall(r"^aegis (trainer check .*)$", (ROOT / "docs/trainers.md").read_text(), re.MULTILINE)
    given = [main._parser().parse_args(line.split()) for line in lines]
    assert [one.command for one in given] == [[], ["sh", "centroids.sh"], []]
