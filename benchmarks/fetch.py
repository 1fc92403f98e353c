"""Downloads against each bucket client's own parallel download: `python -m benchmarks.fetch`.

fake-gcs-server and moto on loopback, one large object and many small ones, each program a process of its own; raw
output in benchmarks/results/. Ours checks what it brings (sha256, and the checksum that the bucket announced); the
clients' check what they check by default. Of the Google client's two ways the faster counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._load import Bound, median, report, run
from tests.storage import servers

BUCKET = "aegis-bench"
OURS = """
from contextlib import closing
from aegis.storage import open_store
store = open_store(f"{kind}://aegis-bench/{what}", env=os.environ)
entries = store.list()
began = time.perf_counter()
with closing(store.bring([(e, home / str(n)) for n, e in enumerate(entries)])) as files:
    for _ in files:
        pass
"""
GOOGLE = """
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage import transfer_manager
url = os.environ["STORAGE_EMULATOR_HOST"]
client = storage.Client(project="-", credentials=AnonymousCredentials(), client_options={{"api_endpoint": url}})
bucket = client.bucket("aegis-bench")
blobs = list(client.list_blobs(bucket, prefix=what + "/"))
began = time.perf_counter()
if what == "large":
    transfer_manager.download_chunks_concurrently(blobs[0], str(home / "0"), worker_type="{worker}")
else:
    pairs = [(blob, str(home / str(n))) for n, blob in enumerate(blobs)]
    transfer_manager.download_many(pairs, worker_type="{worker}", raise_exception=True)
"""
BOTO = """
import boto3
from s3transfer.manager import TransferManager
client = boto3.client("s3")
pages = client.get_paginator("list_objects_v2").paginate(Bucket="aegis-bench", Prefix=what + "/")
keys = [item["Key"] for page in pages for item in page["Contents"]]
began = time.perf_counter()
with TransferManager(client) as manager:
    futures = [manager.download("aegis-bench", key, str(home / str(n))) for n, key in enumerate(keys)]
    for future in futures:
        future.result()
"""
PROGRAM = """
import os, sys, time
from pathlib import Path
kind, what, home = sys.argv[1], sys.argv[2], Path(sys.argv[3])
if __name__ == "__main__":
    {}
    print(time.perf_counter() - began)
"""
UPLOAD = """
import os, sys
from pathlib import Path
from aegis.storage import open_store
kind, home, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
open_store(f"{kind}://aegis-bench/large", env=os.environ).create("x", home / f"{kind} large")
store = open_store(f"{kind}://aegis-bench/small", env=os.environ)
for number in range(count):
    store.create(f"{number:05}", home / "small")
"""
MOTO = """
import json, sys
from tests.storage import servers
with servers.s3("aegis-bench") as env:
    print(json.dumps(env), flush=True)
    sys.stdin.read()
"""
CLIENTS = {
    "gs": {"threads": GOOGLE.format(worker="thread"), "processes": GOOGLE.format(worker="process")},
    "s3": {"boto3": BOTO},
}


@contextmanager
def moto() -> Iterator[Mapping[str, str]]:
    """In a process of its own, as the uploads: a child's peak is at least that of who started it."""
    command = [sys.executable, "-c", MOTO]
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.stdin.close()


def download(program: str, kind: str, what: str, env: Mapping[str, str], home: Path) -> tuple[float, float]:
    """Seconds without imports and listing, and MiB at most; what was brought is looked at and thrown away."""
    home.mkdir()
    script = home.parent / "program.py"
    script.write_text(PROGRAM.format(program.strip().replace("\n", "\n    ")))
    _, peak, said = run([str(script), kind, what, str(home)], {"PATH": os.environ["PATH"], **env}, home)
    sizes = [path.stat().st_size for path in home.iterdir()]
    assert sum(sizes) == int(env["EXPECTED"])
    shutil.rmtree(home)
    return float(said.splitlines()[-1]), peak


def measure(kind: str, what: str, env: Mapping[str, str], home: Path) -> dict[str, Any]:
    """One run: each way of the client, then ours."""
    theirs = {name: download(text, kind, what, env, home) for name, text in CLIENTS[kind].items()}
    ours, peak = download(OURS, kind, what, env, home)
    best = min(theirs, key=lambda name: theirs[name][0])
    return {
        "s": round(ours, 3),
        "client_s": round(theirs[best][0], 3),
        "client": {name: round(seconds, 3) for name, (seconds, _) in theirs.items()},
        "speed": round(theirs[best][0] / ours, 3),
        "peak_mib": round(peak, 1),
        "client_peak_mib": round(theirs[best][1], 1),
    }


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--mib", type=int, default=256, help="for S3 a quarter: moto reads all of it for each range")
    arguments.add_argument("--small", type=int, default=1000, help="objects of 20 kB")
    options = arguments.parse_args()
    busy, began = os.getloadavg()[0], time.perf_counter()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, servers.gcs(BUCKET) as gcs, moto() as s3:
        home = Path(folder)
        sizes = {"gs large": options.mib << 20, "s3 large": options.mib << 18, "small": 20_000}
        for name, size in sizes.items():
            with (home / name).open("wb") as file:
                for start in range(0, size, 1 << 20):
                    file.write(os.urandom(min(1 << 20, size - start)))
        for kind, env in (("gs", gcs), ("s3", s3)):
            run(["-c", UPLOAD, kind, str(home), str(options.small)], {"PATH": os.environ["PATH"], **env}, home)
        for number in range(options.runs):
            for kind, env in (("gs", gcs), ("s3", s3)):
                for what, name, count in (("large", f"{kind} large", 1), ("small", "small", options.small)):
                    given = {**env, "EXPECTED": str(sizes[name] * count)}
                    found.setdefault(f"{kind} {what}", []).append(measure(kind, what, given, home / "copy"))
                    print(number + 1, kind, what, json.dumps(found[f"{kind} {what}"][-1]), flush=True)
    lines = ["| | s | client s | speed, of the client's | peak MiB | client's |", "|---" * 6 + "|"]
    for name, runs in found.items():
        values = [median(runs, what) for what in ("s", "client_s", "speed", "peak_mib", "client_peak_mib")]
        lines.append(f"| {name} | " + " | ".join(f"{value:g}" for value in values) + " |")
    bounds: list[Bound] = [
        (f"{name}, of the client's speed", median(runs, "speed"), ">=", 0.8) for name, runs in found.items()
    ]
    bounds.append(("memory, MiB", max(r["peak_mib"] for runs in found.values() for r in runs), "<=", 200))
    title = f"One object of {options.mib} MiB (S3: a quarter) and {options.small:,} of 20 kB: medians of "
    return report(
        "fetch",
        f"{title}{options.runs} runs; load before {busy:.2f}, {time.perf_counter() - began:.0f} s.",
        lines,
        bounds,
        found,
    )


if __name__ == "__main__":
    raise SystemExit(main())
