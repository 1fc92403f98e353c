"""What all tests share: how a test says that it needs a program, and what is said at the end: which boundaries a fault
hit, and which tests were skipped.

Where `CI` is `true` a skipped test is a failure: there, everything has to be installed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.faults import boundaries


def needs(tool: str, package: str = "") -> str:
    """The path of a program; without it the test is skipped, with the reason."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed (Debian: apt-get install {package or tool})")
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
