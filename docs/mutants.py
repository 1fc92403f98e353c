"""Hold the surviving mutants to their arguments: run by `make mutants` in the folder where mutmut ran.

mutants.md argues each survivor under the function it stands in, by the line before and after. A survivor that is not
there, an argument whose mutant is gone, and a run that was cut short all fail.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

PAGE = Path(__file__).with_name("mutants.md")
MUTMUT = [sys.executable, "-m", "mutmut"]
ARGUED = re.compile(r"^- `+ (?P<change>.+?) `+$", re.MULTILINE)
FUNCTION = re.compile(r"^### `(?P<name>[^`]+)`$")


def main() -> int:
    """Print what stands where it should not; 1 if there is anything. Arguments: the patterns that mutmut ran."""
    told = _mutmut("results", "--all", "true").splitlines()
    pairs = (line.strip().rsplit(": ", 1) for line in told if ": " in line)
    states = {name: state for name, state in pairs if any(fnmatchcase(name, chosen) for chosen in sys.argv[1:])}
    counts = Counter(states.values())
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    unfinished = {name for name, state in states.items() if state not in ("killed", "survived", "timeout")}
    survivors = {change for name, state in states.items() if state == "survived" for change in [_change(name)]}
    argued = set(_argued())
    for heading, found in (
        ("not finished, or not reached by any test", {(name, states[name]) for name in unfinished}),
        ("survives, and docs/mutants.md does not say why", survivors - argued),
        ("argued in docs/mutants.md, but no survivor", argued - survivors),
    ):
        for function, what in sorted(found):
            print(f"{heading}:\n### `{function}`\n- `` {what} ``")
    return 1 if unfinished or survivors ^ argued or not counts["killed"] else 0


def _mutmut(*arguments: str) -> str:
    return subprocess.run([*MUTMUT, *arguments], check=True, capture_output=True, text=True).stdout  # noqa: S603  # ours


def _change(name: str) -> tuple[str, str]:
    """The function of a mutant, and its line before and after."""
    lines = _mutmut("show", name).splitlines()
    before, after = (
        " ".join(line[1:].strip() for line in lines if re.match(rf"\{sign}(?!\{sign}\{sign})", line)) for sign in "-+"
    )
    module, _, function = name.rpartition("__mutmut_")[0].rpartition(".")
    function = re.sub(r"^x_|^xǁ(\w+)ǁ", lambda match: f"{match[1]}." if match[1] else "", function)
    return f"{module}.{function}", f"{before}  →  {after}"


def _argued() -> list[tuple[str, str]]:
    """Function and change of every bullet that some text follows: the argument, which several may share."""
    found: list[tuple[str, str]] = []
    waiting: list[tuple[str, str]] = []
    function = ""
    for line in PAGE.read_text().splitlines():
        if heading := FUNCTION.match(line):
            function, waiting = heading["name"], []
        elif change := ARGUED.match(line):
            waiting.append((function, change["change"]))
        elif line.strip():
            found += waiting
            waiting = []
    return found


if __name__ == "__main__":
    sys.exit(main())
