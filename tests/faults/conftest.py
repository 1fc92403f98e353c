"""The run's output ends with every boundary that a fault hit."""

from __future__ import annotations

import pytest

from tests.faults.boundaries import lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = lines()
    if found:
        terminalreporter.section(f"{len(found)} boundaries were hit by faults")
        for line in found:
            terminalreporter.write_line(line)
