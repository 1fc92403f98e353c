"""The documents are true where a program can tell."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from aegis import errors
from aegis.errors import Permanent
from aegis_cli import config, main
from aegis_cli.demo import DemoFailed
from aegis_cli.stack import NotRunning
from alert_receiver import mapping
from retrain_trigger import policy
from retrain_trigger.model import Policy, policy_from
from train_model.attempt import GateSettings, TrainerSettings, read_settings

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/README.md",
]


def test_the_page_of_settings_is_made_from_the_code() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], check=False, timeout=60)
    assert done.returncode == 0, "run `python docs/generate.py`"


def documented(title: str) -> dict[str, list[str]]:
    """The rows of one table of the settings, by the setting's name."""
    _, _, after = (ROOT / "docs/settings.md").read_text().partition(f"\n## {title}\n")
    rows = [line.split(" | ") for line in after.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    return {row[0].strip("| `"): row[1:] for row in rows}


def test_a_policy_takes_every_name_that_is_documented() -> None:
    names = documented("Policy").keys()
    assert {"evidenceTTL", "datasetUri"} <= names
    assert len(names) == len(fields(Policy))
    policy_from(dict.fromkeys(names))


@pytest.mark.parametrize(
    ("section", "title", "kind"),
    [
        ("trainer", "Trainer (`trainer:` of a policy)", TrainerSettings),
        ("gate", "Gate (`gate:` of a policy)", GateSettings),
    ],
)
def test_the_steps_take_every_name_that_is_documented(section: str, title: str, kind: type) -> None:
    faults: dict[str, str] = {}
    names = documented(title).keys()
    assert len(names) == len(fields(kind))
    read_settings({section: {**dict.fromkeys(names), "surprise": 1}}, "", faults)
    assert {name for name, fault in faults.items() if fault == "unknown"} == {f"{section}.surprise"}


def test_the_file_of_aegis_up_takes_every_name_that_is_documented() -> None:
    names = documented("`aegis up --config FILE`").keys()
    assert len(names) == len(fields(config.Config))
    with pytest.raises(Permanent) as told:
        config.check({**dict.fromkeys(names), "surprise": 1}, Path("/state"))
    assert {name for name, fault in told.value.faults.items() if "is none of" in fault} == {"surprise"}


def test_the_alert_mapping_takes_every_name_that_is_documented() -> None:
    names = documented("Alert mapping (`receiver:`)").keys()
    with pytest.raises(Permanent) as told:
        mapping.section({**dict.fromkeys(names, 1), "surprise": 1})
    assert [name for name, fault in told.value.faults.items() if fault.startswith("unknown")] == ["receiver.surprise"]


def test_the_variables_of_the_steps_are_those_that_the_template_hands_to_each() -> None:
    handed: dict[str, list[str]] = {}
    for template in yaml.safe_load((ROOT / "knative/base/argo/workflow-template.yaml").read_text())["spec"][
        "templates"
    ]:
        for container in (
            *template.get("initContainers", []),
            *template.get("sidecars", []),
            template.get("container"),
        ):
            for variable in container["env"] if container else []:
                source = variable.get("valueFrom", {}).get("configMapKeyRef", {})
                if source.get("name") == "aegis-steps":
                    assert variable["name"] == source["key"]
                    handed.setdefault(source["key"], []).append(container["command"][-1].rpartition(".")[2])
    rows = documented("The Workflow's steps")
    assert {name: row[0].split(", ") for name, row in rows.items()} == handed


def test_every_reason_of_a_hold_is_explained() -> None:
    text = (ROOT / "docs/policy.md").read_text()
    explained = {
        name for row in re.findall(r"^\| ([A-Z]\w+(?:, \w+)*) \|", text, re.MULTILINE) for name in row.split(", ")
    }
    assert policy.SPELLED.keys() - {"Ready"} <= explained  # a resolve that came when all was ready: no hold by itself


def test_every_exit_code_is_in_the_help() -> None:
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    codes |= {main.NO, NotRunning.exit_code, DemoFailed.exit_code}
    assert {int(code) for code in re.findall(r"(?:^|  )(\d+) ", main.EXIT_CODES, re.MULTILINE)} == codes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_example_of_the_mapping_is_a_valid_configuration() -> None:
    [example, *_] = re.findall(r"```yaml\n(receiver:\n.*?)```", (ROOT / "docs/mapping.md").read_text(), re.DOTALL)
    config = mapping.load(example)
    assert config.min_severity == "warning"
    assert {caller.name for caller in config.credentials} == {"prod-alertmanager", "staging"}


def test_every_command_of_the_readme_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--help"])
    known = capsys.readouterr().out
    for command in re.findall(r"aegis ([a-z]+)", (ROOT / "README.md").read_text()):
        assert command in known
