"""Checkpoints on their way to a bucket and back: whole, ours, of the same inputs; a training killed with its pod."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis.storage import Store, open_store
from tests.storage import servers
from tests.support import until
from tests.train_model import datasets
from tests.train_model.world import World
from train_model import checkpoint
from train_model.attempt import Attempt
from train_model.checkpoint import Keeper, restore

BUCKET = "aegis-test"


@pytest.fixture(scope="module")
def buckets() -> Iterator[Mapping[str, Mapping[str, str]]]:
    with ExitStack() as held:
        yield {
            "file": {},
            "gs": held.enter_context(servers.gcs(BUCKET)),
            "s3": held.enter_context(servers.s3(BUCKET)),
        }


def attempt(folder: Path, models_uri: str, inputs: str = "i" * 64) -> Attempt:
    """An attempt whose fetch found these inputs."""
    (folder / "data" / "train").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "train" / "dataset.json").write_text(json.dumps({"inputs": inputs}))
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "kept").mkdir(exist_ok=True)
    env = {"AEGIS_MODEL": "digits", "AEGIS_ENVIRONMENT": "test", "AEGIS_WORKFLOW_UID": "uid-1"}
    settings = base64.b64encode(json.dumps({"secret": "s3cret"}).encode()).decode()
    places = {"DATA": "data", "TMP": "tmp", "CHECKPOINT": "kept"}
    env |= {f"AEGIS_{name}": str(folder / place) for name, place in places.items()}
    return Attempt.from_env(env | {"AEGIS_SETTINGS": settings, "AEGIS_MODELS_URI": models_uri})


@pytest.fixture(params=["file", "gs", "s3"])
def held(request: pytest.FixtureRequest, tmp_path: Path, buckets: Mapping[str, Any]) -> tuple[Attempt, Store]:
    place = tmp_path if request.param == "file" else f"{BUCKET}/{tmp_path.name}"
    uri = f"{request.param}://{place}/models"
    return attempt(tmp_path / "pod", uri), open_store(uri, env=buckets[request.param])


def kept(one: Attempt) -> Path:
    assert one.checkpoint
    return one.checkpoint


def test_the_newest_comes_back_at_the_next_try_under_its_own_name(held: tuple[Attempt, Store]) -> None:
    one, store = held
    keeper = Keeper(one, store)
    keeper.look()
    assert (keeper.count, restore(one, store, "i" * 64)) == (0, "")
    for number in (1, 2):
        path = kept(one) / f"epoch-{number}.npz"
        path.write_bytes(bytes([number]) * 300_000)
        os.utime(path, (number, number))
        keeper.look()
        keeper.look()
    assert keeper.count == 2
    shutil.rmtree(kept(one))
    assert restore(one, store, "i" * 64) == "the training goes on from the checkpoint epoch-2.npz"
    assert [p.name for p in kept(one).iterdir()] == ["epoch-2.npz"]
    assert (kept(one) / "epoch-2.npz").read_bytes() == b"\2" * 300_000


@pytest.mark.parametrize(
    "how", ["other bytes", "other inputs", "other secret", "other attempt's", "no head", "a way out"]
)
def test_a_checkpoint_that_is_not_ours_is_left_aside(tmp_path: Path, how: str) -> None:
    uri = f"file://{tmp_path}/models"
    one, store = attempt(tmp_path / "pod", uri), open_store(uri, env={})
    (kept(one) / "x").write_bytes(b"weights")
    Keeper(one, store).look()
    (object_,) = store.list()
    whole = store.read(object_.path, limit=1 << 20)
    inputs = "i" * 64
    if how == "other bytes":
        store.swap(object_.path, whole[:-1] + b"!", object_.version)
    elif how == "other inputs":
        inputs = "j" * 64
    elif how == "other secret":
        one = replace(one, secret="guessed")
    elif how == "other attempt's":
        one = replace(one, workflow_uid="uid-2")
        store.create("checkpoints/test/digits/uid-2", whole)
    elif how == "no head":
        store.swap(object_.path, b"[" * 5000, object_.version)
    else:
        name = "../../train/dataset.json"
        seal = checkpoint._sealed(one, name, hashlib.sha256(b"weights").hexdigest(), inputs)
        head = json.dumps({"name": name, "seal": seal}).encode().ljust(checkpoint._HEAD)
        store.swap(object_.path, head + b"weights", object_.version)
    shutil.rmtree(kept(one))
    assert "left aside" in restore(one, store, inputs)
    assert list(kept(one).iterdir()) == []


def test_only_plain_whole_files_are_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"file://{tmp_path}/models"
    one, store = attempt(tmp_path / "pod", uri), open_store(uri, env={})
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 100)
    (kept(one) / ".half").write_bytes(b"x")
    (kept(one) / "link").symlink_to("/etc/passwd")
    (kept(one) / "large").write_bytes(bytes(101))
    (kept(one) / "bad\nname").write_bytes(b"x")
    os.mkfifo(kept(one) / "fifo")
    keeper = Keeper(one, store)
    keeper.look()
    assert (keeper.count, store.list()) == (0, [])


@pytest.mark.parametrize("where", ["file", "gs"])
def test_a_training_whose_pod_is_killed_at_random_goes_on_and_ends_bit_identical(
    world: World, buckets: Mapping[str, Mapping[str, str]], where: str
) -> None:
    """The pod's processes are killed and its volumes emptied, twice; only the bucket remembers."""
    old, _, _ = datasets.digits()
    datasets.save_npz(world.root / "data" / "new" / "x.npz", old + old + old)
    world.settings = {
        "seed": 3,
        "secret": "s3cret",
        "trainer": {"params": {"iterations": 100, "hidden": 200, "rate": 1e-4, "checkpointSeconds": 0}},
    }
    world.env["AEGIS_CHECKPOINT"] = str(world.root / "checkpoint")
    if where != "file":
        world.env |= {**buckets[where], "AEGIS_MODELS_URI": f"{where}://{BUCKET}/{world.root.name}"}
    assert world.call("fetch").code == 0
    assert world.call("train").code == 0
    whole = weights(world.root / "out" / "model")

    world.uid += "-killed"
    rng, went_on = np.random.default_rng(11), 0
    for kill in (True, True, False):
        for volume in ("pod", "out", "checkpoint", "tmp"):
            shutil.rmtree(world.root / volume, ignore_errors=True)
        fetched = world.run("fetch")
        assert fetched.code == 0, fetched.text
        went_on += "the training goes on from the checkpoint" in fetched.text
        beside, trains = started(world, "checkpoint"), started(world, "train")
        try:
            if kill:
                enough = int(rng.integers(1, 3))
                seen: set[str] = set()

                def brought(enough: int = enough, seen: set[str] = seen) -> bool:
                    store = open_store(world.environment()["AEGIS_MODELS_URI"], env=world.env)
                    there = store.head(f"checkpoints/test/digits/{world.uid}")
                    seen.update([there.version] if there else [])
                    return len(seen) >= enough

                until(brought, "a checkpoint in the bucket")
                assert trains.poll() is None, "it ended before it was killed: make it slower"
            else:
                assert trains.wait(120) == 0
        finally:
            for process in (trains, beside):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert went_on == 2
    assert weights(world.root / "out" / "model") == whole


def started(world: World, step: str) -> subprocess.Popen[bytes]:
    """A step in a process group of its own, at work."""
    command = [sys.executable, "-m", f"train_model.{step}"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        command, env=world.environment(), cwd=world.root, start_new_session=True, stdout=quiet, stderr=quiet
    )


def weights(model: Path) -> list[bytes]:
    import skops.io

    from train_model.predict import TRUSTED

    network = skops.io.load(model / "model.skops", trusted=list(TRUSTED))[-1]
    return [layer.tobytes() for layer in (*network.coefs_, *network.intercepts_)]


def test_a_sidecar_that_is_told_to_end_brings_what_was_left_last_and_ends_well(world: World) -> None:
    world.env["AEGIS_CHECKPOINT"] = str(world.root / "checkpoint")
    (world.root / "checkpoint").mkdir()
    (world.root / "tmp").mkdir()
    process = started(world, "checkpoint")
    status = Path(f"/proc/{process.pid}/status")
    until(lambda: caught(status) >> (signal.SIGTERM - 1) & 1, "its handler of SIGTERM")
    (world.root / "checkpoint" / "last").write_bytes(b"x")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert open_store(world.uri("models"), env={}).head(f"checkpoints/test/digits/{world.uid}")


def caught(status: Path) -> int:
    """The mask of the signals that a process has a handler for."""
    return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt")), 16)


def test_a_sidecar_never_fails_its_pod_whatever_is_wrong(world: World) -> None:
    for wrong in ({"AEGIS_MODELS_URI": ""}, {"AEGIS_MODELS_URI": "ftp://x"}, {"AEGIS_SETTINGS": "%"}):
        world.env = {"AEGIS_CHECKPOINT": str(world.root / "checkpoint"), **wrong}
        done = world.run("checkpoint")
        assert done.code == 0
        assert "checkpoint: " in done.text or "BadData" in done.text
