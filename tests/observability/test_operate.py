"""docs/operate.md names all that an operator can meet. What that is, is read from the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis import errors
from retrain_trigger import announce, function, policy
from retrain_trigger.model import Condition, Row, Status
from tests.observability import world
from tests.observability.exported import ROOT, STATE_METRICS, families, receiver_text, trigger_text
from tests.trigger.world import NOW

PAGE = (ROOT / "docs" / "operate.md").read_text()
TRIGGER = ROOT / "functions" / "retrain_trigger"


def rows(title: str) -> list[list[str]]:
    """The rows of the tables of one section, cell by cell."""
    _, found, after = PAGE.partition(f"\n## {title}\n")
    assert found, f"no section {title}"
    lines = [line for line in after.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if set(row[0]) != {"-"}]


def named(title: str, column: int = 0) -> set[str]:
    """The names in backquotes in one column of a section's tables."""
    return {name for row in rows(title) if len(row) > column for name in re.findall(r"`([^`]+)`", row[column])}


def texts(node: ast.AST) -> set[str]:
    """The texts that an expression may be; a constant of the policy by its value."""
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.Name(id=name) if isinstance(value := getattr(policy, name, None), str):
            return {value}
        case ast.IfExp(body=body, orelse=other):
            return texts(body) | texts(other)
    return set()


def calls(path: Path, name: str) -> Iterator[ast.Call]:
    """Every call of a function, by its plain name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def body_of(path: Path, name: str) -> ast.FunctionDef:
    (found,) = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef) and n.name == name]
    return found


# --- what the code can say ---------------------------------------------------------------------------------------


def human_reasons() -> set[str]:
    """Why NeedsHuman may hold."""
    found: set[str] = set()
    for node in ast.walk(body_of(TRIGGER / "policy.py", "needs_human")):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            found |= texts(node.value.elts[0])
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            found |= {text for one in node.iter.elts if isinstance(one, ast.Tuple) for text in texts(one.elts[0])}
    assert {"RetrainsFail", "AwaitingApproval"} <= found
    return found


def states() -> set[str]:
    """How a Workflow in flight may be seen, and the phases before that."""
    seen = {
        text
        for node in ast.walk(body_of(TRIGGER / "workflow.py", "_state"))
        if isinstance(node, ast.Return) and node.value
        for text in texts(node.value)
    }
    phases = {
        text
        for path in (TRIGGER / "policy.py", TRIGGER / "workflow.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "phase"
        for text in texts(node.value)
    }
    assert {"Queued"} <= seen
    assert {"Claimed", "Submitted"} <= phases
    return seen | phases - {"Finished"}


def conditions() -> dict[str, set[str]]:
    """The reasons that each condition may show."""
    found: dict[str, set[str]] = {
        "Retraining": states() | policy.SPELLED.keys(),
        "NeedsHuman": {*human_reasons(), "No"},
    }
    for node in ast.walk(body_of(TRIGGER / "policy.py", "_conditions")):
        match node:
            case ast.Tuple(elts=[ast.Constant(value=str(kind)), _, reason, _]):
                found.setdefault(kind, set()).update(texts(reason))
    return found


def history() -> set[tuple[str, str]]:
    """The kinds and reasons of the story's rows."""
    found = {("Hold", reason) for reason in policy.SPELLED} | {("Finished", outcome) for outcome in policy.Outcome}
    for call in calls(TRIGGER / "policy.py", "_row"):
        (kind,) = texts(call.args[1])
        found |= {(kind, reason) for reason in texts(call.args[2])}
    assert {("Hold", "NameTaken"), ("Submitted", "Drift"), ("Submitted", "Requested")} <= found
    return found


def details() -> set[str]:
    """The reasons that the end of a retrain may carry."""
    found: set[str] = set()
    for path in (TRIGGER / "trigger.py", TRIGGER / "workflow.py"):
        for call in calls(path, "Finish"):
            found |= {text for word in call.keywords if word.arg == "reason" for text in texts(word.value)}
    for node in ast.walk(body_of(TRIGGER / "workflow.py", "_outcome")):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            found |= texts(node.value.elts[1])
    for path in (ROOT / "steps").rglob("*.py"):
        for call in calls(path, "TrainerFailed"):
            found |= texts(call.args[0])
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(rf"^(?:{'|'.join(policy.Outcome)}):(\w+)$", node.value))
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "reason":
                found |= texts(node.value)
    assert {"NotCreated", "ApprovalTimedOut", "StaleChallenger", "NoLabels"} <= found
    return found


def log_lines() -> set[str]:
    """What functions and what they share may log; where it is no plain text, the decision's kind."""
    found = {kind.value for kind in policy.Kind}
    for path in [*(ROOT / "functions").rglob("*.py"), *(ROOT / "shared").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=_), args=[first, *_]):
                    found |= texts(first)
    assert {"dead letter", "the retrain ended", "not ready"} <= found
    return found


# --- what the page says ------------------------------------------------------------------------------------------


def test_every_metric_of_the_functions_is_documented_with_its_labels(tmp_path: Path) -> None:
    exported = {f.name: f.labels for f in families(receiver_text()) + families(trigger_text(tmp_path))}
    told = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows("Metrics of the functions")[1:]}
    assert told == exported


def test_every_value_of_a_label_is_documented() -> None:
    page = PAGE.partition("\n## Metrics of the functions\n")[2].partition("\n## ")[0]
    values = [*function.RESULTS, *function.DEAD, *(v for _, _, _, known in function.COUNTED.values() for v in known)]
    for word in values:
        assert f"`{word}`" in page, word


def test_every_metric_of_kube_state_metrics_is_documented_with_its_labels() -> None:
    (resource,) = STATE_METRICS["spec"]["resources"]
    made = {}
    for metric in resource["metrics"]:
        (rule,) = [value for key, value in metric["each"].items() if key != "type"]
        labels = {*metric.get("labelsFromPath", {}), *rule.get("labelsFromPath", {})}
        made[f"aegis_managedmodel_{metric['name']}"] = labels | ({rule["labelName"]} if "labelName" in rule else set())
    told = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows("Metrics of the models")[1:]}
    assert told == made


def test_every_alert_is_documented() -> None:
    assert named("Alerts") == {rule["alert"] for group in world.RULES["groups"] for rule in group["rules"]}


def test_the_known_reasons_of_decisions_are_those_that_the_code_gives() -> None:
    given: set[str] = set(policy.SPELLED) | {"Drift", "Requested"}
    for path in (TRIGGER / "policy.py", TRIGGER / "trigger.py"):
        for call in calls(path, "Decision"):
            given |= texts(call.args[1])
    assert {reason for _, reason in function.DECISIONS} == given
    assert {kind for kind, _ in function.DECISIONS} == set(policy.Kind)


def test_every_reason_of_a_decision_is_documented() -> None:
    told = {
        (kind, reason)
        for row in rows("Decisions")[1:]
        for kind in [row[0]]
        for reason in re.findall(r"`(\w+)`", row[1])
    }
    assert told == {(kind.value, reason) for kind, reason in function.DECISIONS}


@pytest.mark.parametrize("kind", ["Drifting", "Retraining", "NeedsHuman", "Stuck"])
def test_every_reason_of_a_condition_is_documented(kind: str) -> None:
    assert conditions().keys() == {"Drifting", "Retraining", "NeedsHuman", "Stuck"}
    told = {reason for row in rows("Conditions")[1:] if row[0] == kind for reason in re.findall(r"`(\w+)`", row[1])}
    assert told == conditions()[kind]


def test_every_outcome_and_its_reasons_are_documented() -> None:
    assert named("Outcomes") == {outcome.value for outcome in policy.Outcome}
    assert details() <= named("Outcomes", 1), details() - named("Outcomes", 1)


def test_every_kubernetes_event_is_documented_with_its_type() -> None:
    told = {(reason, row[1]) for row in rows("Events")[1:] for reason in re.findall(r"`(\w+)`", row[0])}
    after = [
        Status(history=(Row(kind=kind, reason=reason, message="", first=NOW, last=NOW),)) for kind, reason in history()
    ]
    for kind in ("NeedsHuman", "Stuck"):
        for reason in conditions()[kind] - {"No"}:
            made = Condition(type=kind, status="True", reason=reason, message="", last_transition_time=NOW)
            after.append(Status(conditions=(made,)))
    news = [one for status in after for one in announce.news(Status(), status)]
    made_of = {(one.reason, "Warning" if one.warning else "Normal") for one in news}
    assert told == made_of


def test_every_line_of_the_log_is_documented() -> None:
    assert named("Log lines") == log_lines()


def test_every_exit_code_of_the_steps_is_documented() -> None:
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    told = {int(code) for row in rows("Exit codes")[1:] for code in re.findall(r"\d+", row[0])}
    assert told == codes | {1, 137, 143}
    names = {word for row in rows("Exit codes")[1:] for word in re.findall(r"`([A-Z_]+)`", row[1])}
    assert names == {name for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
