"""Write docs/settings.md from the docstrings of the settings classes: `python docs/generate.py`."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from retrain_trigger.model import camel

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
    ("Trainer (`trainer:` of a policy)", "steps/train_model/attempt.py", "TrainerSettings", "camel"),
    ("Gate (`gate:` of a policy)", "steps/train_model/attempt.py", "GateSettings", "camel"),
)
STEPS = {
    "AEGIS_MODELS_URI": "Where packages and signed pointers lie: `file://`, `gs://` or `s3://`.",
    "AEGIS_DATASET_PREFIXES": "The same list as the trigger's: fetch and gate read nothing else.",
    "AEGIS_TRUSTED_KEYS": "A PEM file, or a folder of `*.pub`: whose signatures count.",
    "AEGIS_SIGNING_KEY": "The key that sign and promote sign with, by its URI (docs/keys.md).",
    "AEGIS_SIGNING_PASSWORD_FILE": "The password of cosign's encrypted key file.",
    "VAULT_ADDR": "The Vault or OpenBao that holds the key. https, or http on loopback.",
    "VAULT_NAMESPACE": "Its namespace, where it has some.",
    "VAULT_CACERT": "A PEM file of what signed its certificate; by default the public authorities.",
    "AEGIS_VAULT_ROLE": "The role of its Kubernetes auth method. Either this or AEGIS_VAULT_TOKEN_FILE.",
    "AEGIS_VAULT_AUTH_MOUNT": "Where that method is mounted; by default `kubernetes`.",
    "AEGIS_VAULT_TRANSIT_MOUNT": "Where its transit engine is mounted; by default `transit`.",
    "AEGIS_VAULT_TOKEN_FILE": "A file with a token that somebody else keeps valid, in place of a role.",
    "AEGIS_ALLOW_PICKLE": "`true`: a model may hold files that run code when loaded. Off, because a signature says who "
    "made a file, not that it is harmless.",
    "AEGIS_SINK": "Where the end of a Workflow is told. Only a wake-up: reconcile finds it without.",
    "MLFLOW_TRACKING_URI": "The MLflow server of runs and registry.",
}
TEMPLATE = ROOT / "knative" / "base" / "argo" / "workflow-template.yaml"


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
    parts += [
        "## The Workflow's steps",
        "From the ConfigMap `aegis-steps`; `aegis up` sets them by itself. Credentials of bucket, MLflow and registry "
        "come from the Secrets `aegis-storage`, `aegis-mlflow` and `aegis-registry` under the names that their clients "
        "know; `aegis up` hands its own `AWS_*`, `GOOGLE_*`, `STORAGE_EMULATOR_HOST` and `MLFLOW_TRACKING_USERNAME`, "
        "`MLFLOW_TRACKING_PASSWORD` or `MLFLOW_TRACKING_TOKEN` to the same steps.",
        "| variable | read by | what |\n| --- | --- | --- |\n" + "\n".join(_steps()),
    ]
    return "\n\n".join(parts) + "\n"


def _steps() -> list[str]:
    """A row a variable that the WorkflowTemplate hands to a step; KeyError for one that is not explained here."""
    readers: dict[str, list[str]] = {}
    step = ""
    for line in TEMPLATE.read_text().splitlines():
        if found := re.match(r"        command: \[python, -m, \w+\.(\w+)\]|          command: .*\.(\w+)\]", line):
            step = found[1] or found[2]
        if found := re.search(r"configMapKeyRef: \{name: aegis-steps, key: (\w+)", line):
            readers.setdefault(found[1], []).append(step)
    return [f"| `{name}` | {', '.join(readers[name])} | {STEPS[name]} |" for name in sorted(readers | STEPS)]


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
    return camel(name) if spelling == "camel" else name


if __name__ == "__main__":
    sys.exit(main())
