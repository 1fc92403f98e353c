"""The documents are true where a program can tell."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_cli import main
from alert_receiver import mapping

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
