"""`make bundle`: stage each function as a folder that `kn func deploy --path` takes.

func's builders see the folder and nothing else, and some refuse links, so everything in it is a copy: the function's
package, `aegis`, and `function`, which holds `new()`. The dependencies are those of the function's lock.
"""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FUNCTIONS = {"alert-receiver": "receiver", "retrain-trigger": "trigger"}
"""Each function's name, and the one of its lock."""
HOST_FILES = ("func.py", "main.py")
"""Entry points: the one for func-python becomes `function`, the other is not for this host."""

PYPROJECT = """\
[build-system]
requires = ["{backend}"]
build-backend = "hatchling.build"

[project]
name = "function"
version = "{version}"
description = "Aegis: {name}"
license = "Apache-2.0"
requires-python = "{python}"
dependencies = [
{dependencies}
]

[tool.hatch.build.targets.wheel]
packages = ["aegis", "function", "{package}"]
"""


def pins(lock: str) -> list[str]:
    """The requirements of a lock without their hashes, which a pyproject.toml cannot hold."""
    lines = (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines()
    return [line.removesuffix("\\").rstrip() for line in lines if re.match(r"[A-Za-z0-9]", line)]


def stage(name: str, into: Path) -> None:
    """Make the folder of one function anew."""
    package = name.replace("-", "_")
    source = ROOT / "functions" / package
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    shutil.rmtree(into, ignore_errors=True)
    _copy(ROOT / "shared" / "aegis", into / "aegis")
    _copy(source, into / package, without=HOST_FILES)
    (into / "function").mkdir()
    shutil.copyfile(source / "func.py", into / "function" / "__init__.py")
    shutil.copyfile(source / "func.yaml", into / "func.yaml")
    shutil.copyfile(ROOT / "LICENSE", into / "LICENSE")
    (into / "pyproject.toml").write_text(
        PYPROJECT.format(
            backend=next(pin for pin in pins("func") if pin.startswith("hatchling==")),
            version=project["version"],
            name=name,
            python=project["requires-python"],
            dependencies="\n".join(f'  "{pin}",' for pin in pins(f"func-{FUNCTIONS[name]}")),
            package=package,
        )
    )


def _copy(package: Path, into: Path, without: tuple[str, ...] = ()) -> None:
    for source in sorted(package.rglob("*.py")):
        if source.name not in without:
            target = into / source.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for each in FUNCTIONS:
        stage(each, folder / each)
        print(folder / each)
