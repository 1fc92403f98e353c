"""What each Dockerfile promises; `make images` builds them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {
    "functions/alert_receiver": "receiver",
    "functions/retrain_trigger": "trigger",
    "steps/train_model": "train",
    "steps/sign_model": "sign",
}
"""Each folder with a Dockerfile, and the lock of its image."""

images = pytest.mark.parametrize("folder", IMAGES)


def stages(folder: str) -> tuple[list[str], list[str]]:
    """The instructions of the build stage and of the final one, each as one line."""
    text = (ROOT / folder / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    lines = [line for line in lines if line]
    assert lines[0].startswith("ARG BASE_IMAGE=")
    first, second = [index for index, line in enumerate(lines) if line.startswith("FROM ")]
    assert (lines[first], lines[second]) == ("FROM $BASE_IMAGE AS build", "FROM $BASE_IMAGE")
    return lines[first + 1 : second], lines[second + 1 :]


def test_every_dockerfile_is_known_here_and_to_make() -> None:
    found = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("*/*/Dockerfile")}
    assert found == set(IMAGES)
    made = re.search(r"^IMAGES +:= (.*\\\n)*.*$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert made is not None
    assert set(re.findall(r"(\S+)=aegis-\S+", made[0])) == found


@images
def test_only_the_images_own_lock_is_installed_and_only_by_hash(folder: str) -> None:
    build, _ = stages(folder)
    whole = "\n".join(build)
    for name, value in re.findall(r"^ARG (\w+)=(\S+)$", whole, re.MULTILINE):
        whole = whole.replace(f"${name}", value)  # as an image is built without options
    assert f"COPY requirements/{IMAGES[folder]}.txt /tmp/requirements.txt" in whole.splitlines()
    (install,) = [line for line in build if " install " in line]
    for option in ("--require-hashes", "--no-deps", "--only-binary :all:", "-r /tmp/requirements.txt"):
        assert option in install
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert IMAGES[folder] in extras


@images
def test_only_the_packages_that_the_image_runs_are_in_it(folder: str) -> None:
    build, final = stages(folder)
    package = folder.partition("/")[2]
    assert [line for line in build if line.startswith("COPY ") and "requirements" not in line] == [
        "COPY shared/aegis /app/aegis",
        f"COPY {folder} /app/{package}",
    ]
    assert [line for line in final if line.startswith("COPY ")] == [
        "COPY --from=build /opt/aegis /opt/aegis",
        "COPY --from=build /app /app",
    ]


@images
def test_bytecode_is_made_for_all_of_it(folder: str) -> None:
    build, _ = stages(folder)
    assert "compileall -q --invalidation-mode unchecked-hash /opt/aegis/lib /app" in build[-1]


@images
def test_it_runs_as_nobody_with_a_home_that_can_be_written(folder: str) -> None:
    _, final = stages(folder)
    assert "USER 65532:65532" in final
    assert not [line for line in final[final.index("USER 65532:65532") :] if line.startswith(("RUN", "COPY", "ADD"))]
    assert " HOME=/tmp " in next(line for line in final if line.startswith("ENV ")) + " "
    assert any(line.startswith("ENTRYPOINT [") for line in final)


@pytest.mark.parametrize("folder", [folder for folder in IMAGES if folder.startswith("functions/")])
def test_a_function_listens_on_port_and_gets_the_signals(folder: str) -> None:
    _, final = stages(folder)
    (entrypoint,) = [line for line in final if line.startswith("ENTRYPOINT ")]
    shell, option, command = yaml.safe_load(entrypoint.removeprefix("ENTRYPOINT "))
    assert (shell, option) == ("/bin/sh", "-c")
    assert command.startswith('exec uvicorn functions_framework.aio:app --host 0.0.0.0 --port "$PORT"')
    assert "--lifespan on --timeout-keep-alive 95" in command


def test_nothing_goes_into_a_build_that_is_not_named() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {"requirements", "shared", "functions", "steps"}
