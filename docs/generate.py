"""Write docs/settings.md from the docstrings of the settings classes: `python docs/generate.py`."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "settings.md"

# title, file, class, how a field is spelled for the user
SECTIONS = (
    ("`aegis up --config FILE`", "cli/aegis_cli/config.py", "Config", "camel"),
    ("Alert mapping (`receiver:`)", "functions/alert_receiver/mapping.py", "Config", "snake"),
    ("alert-receiver", "functions/alert_receiver/settings.py", "Settings", "env:AEGIS_"),
    ("alert-receiver, set by Knative", "functions/alert_receiver/settings.py", "Binding", "env:K_"),
    ("retrain-trigger", "functions/retrain_trigger/function.py", "Settings", "env:AEGIS_"),
    ("Policy", "functions/retrain_trigger/model.py", "Policy", "camel"),
    ("Trainer (`trainer:` of a policy)", "steps/train_model/attempt.py", "TrainerSettings", "snake"),
    ("Gate (`gate:` of a policy)", "steps/train_model/attempt.py", "GateSettings", "snake"),
    ("Local runner", "cli/aegis_cli/workflow_run.py", "Settings", "snake"),
)


def main() -> int:
    """Write the page, or with --check say whether it is current."""
    text = page()
    if sys.argv[1:] == ["--check"]:
        return 0 if TARGET.read_text() == text else 1
    TARGET.write_text(text)
    return 0


def page() -> str:
    """The whole page."""
    parts = [
        "# Settings",
        "Made from the code by `python docs/generate.py`. Durations are written as `6h`, `90m`, `1d12h`.",
    ]
    for title, file, name, spelling in SECTIONS:
        parts.append(f"## {title}")
        parts.append(
            "| setting | default | why |\n| --- | --- | --- |\n" + "\n".join(_rows(ROOT / file, name, spelling))
        )
    return "\n\n".join(parts) + "\n"


def _rows(file: Path, name: str, spelling: str) -> list[str]:
    tree = ast.parse(file.read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    rows = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = " ".join(str(after.value.value).split())
        default = "required" if node.value is None else _default(node.value)
        rows.append(f"| `{_spelled(node.target.id, spelling)}` | {default} | {text.replace('|', chr(92) + '|')} |")
    return rows


def _default(value: ast.expr) -> str:
    text = ast.unparse(value)
    if found := re.fullmatch(r"timedelta\((\w+)=(\d+)\)", text):
        return f"`{found[2]}{found[1][0]}`"
    if text in ("()", "None", "''", "field(default_factory=dict)", "{}"):
        return "none"
    if isinstance(value, ast.Constant):
        return f"`{str(value.value).lower() if isinstance(value.value, bool) else value.value}`"
    return "see the text" if len(text) > 40 else f"`{text}`"


def _spelled(name: str, spelling: str) -> str:
    if spelling.startswith("env:"):
        return spelling[4:] + name.upper()
    if spelling == "camel":
        head, *rest = name.split("_")
        return head + "".join(part.capitalize() for part in rest)
    return name


if __name__ == "__main__":
    sys.exit(main())
