"""Hashing, packing and verifying a large model against `openssl dgst -sha256`: `python -m benchmarks.signing`.

A model of 2 GiB in four files and a small one, in memory (`--folder`, by default /dev/shm; needs five times the size),
because a disk takes longer to write than all the rest. Each part has a time of openssl's own before it; raw output in
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._load import Bound, median, report, run

FILES = 4
WORK = {
    "hash": """
from aegis import manifest
began = time.perf_counter()
manifest.walk(home / "model")
""",
    "package": """
from aegis import manifest
began = time.perf_counter()
with (home / "packed.tar").open("wb") as tar:
    manifest.pack(home / "model", tar)
""",
    "sign and publish": """
from aegis import package, signature
from aegis.storage import open_store
from sign_model import keys
from sign_model.sign import sign
signer = keys.ensure(home / "keys/signing.pem", home / "trusted")
trusted = signature.load_keys(home / "trusted")
origin = package.Origin(model="large", environment="default", workflow_uid="benchmark")
store = open_store((home / "store").as_uri(), env={})
(home / "tmp").mkdir()
began = time.perf_counter()
sign(home / "model", origin, None, store=store, signer=signer, trusted=trusted, scratch=home / "tmp")
""",
    "verify and extract": """
from aegis import signature
from sign_model.verify import verify_directory
(folder,) = (home / "store/packages/default/large").iterdir()
trusted = signature.load_keys(home / "trusted")
began = time.perf_counter()
faults = verify_directory(folder, trusted, model="large", environment="default", target=home / "served")
assert not faults, faults
""",
}
"""What is measured: from `began` to the end of the program, without imports."""
PROGRAM = """
import sys, time
from pathlib import Path
home = Path(sys.argv[1])
{}
print(time.perf_counter() - began)
"""


def openssl(model: Path) -> float:
    """Seconds for the sha256 of every file."""
    command = ["openssl", "dgst", "-sha256", *(str(file) for file in sorted(model.iterdir()))]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(home: Path) -> dict[str, Any]:
    """One run: openssl before each part, the parts in their order."""
    found: dict[str, Any] = {}
    for name, program in WORK.items():
        limit = openssl(home / "model")
        wall, peak, said = run(["-c", PROGRAM.format(program), str(home)], {"PATH": os.environ["PATH"]}, home)
        took = float(said.splitlines()[-1])
        found[name] = {"s": round(took, 3), "openssl_s": round(limit, 3), "ratio": round(took / limit, 3),
                       "wall_s": round(wall, 3), "peak_mib": round(peak, 1)}  # fmt: skip
    for name in ("store", "served", "tmp"):
        shutil.rmtree(home / name)
    (home / "packed.tar").unlink()
    return found


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--gib", type=float, default=2.0)
    arguments.add_argument("--folder", type=Path, default=Path("/dev/shm"))  # noqa: S108  one of our own below it
    options = arguments.parse_args()
    busy, began = os.getloadavg()[0], time.perf_counter()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = Path(folder) / "model"
        model.mkdir()
        for number in range(FILES):
            with (model / f"weights-{number}.safetensors").open("wb") as file:
                for _ in range(int(options.gib * 1024 / FILES)):
                    file.write(os.urandom(1 << 20))
        (model / "MLmodel").write_text("flavors: {}\n")
        openssl(model)  # everything is in the page cache now
        for number in range(options.runs):
            runs.append(measure(Path(folder)))
            print(number + 1, json.dumps(runs[-1]), flush=True)
    lines = ["| | s | openssl s | ratio | peak MiB |", "|---" * 5 + "|"]
    for name in WORK:
        values = [median(runs, name, what) for what in ("s", "openssl_s", "ratio", "peak_mib")]
        lines.append(f"| {name} | " + " | ".join(f"{value:g}" for value in values) + " |")
    peak = max(found[name]["peak_mib"] for found in runs for name in WORK)
    bounds: list[Bound] = [
        ("hash, of openssl's time", median(runs, "hash", "ratio"), "<=", 1.3),
        ("package, of openssl's time", median(runs, "package", "ratio"), "<=", 2.0),
        ("verify and extract, of openssl's time", median(runs, "verify and extract", "ratio"), "<=", 2.5),
        ("memory, MiB", peak, "<=", 200),
    ]
    title = f"Signing {options.gib:g} GiB: medians of {options.runs} runs; load before {busy:.2f}, "
    return report("signing", f"{title}{time.perf_counter() - began:.0f} s.", lines, bounds, runs)


if __name__ == "__main__":
    raise SystemExit(main())
