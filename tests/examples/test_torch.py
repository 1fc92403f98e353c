"""The PyTorch example: PyTorch comes from its pinned list into the tests' cache, not into the project's environment."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aegis_cli import main

from .conftest import EXAMPLES

LIST = Path(__file__).parents[2] / "requirements" / "torch.txt"


@pytest.fixture(scope="module")
def torch() -> Path:
    """A folder with PyTorch, 5 GB with CUDA's libraries. What the cache lacks one process brings, the others wait."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aegis-tests"
    folder = cache / f"torch-{hashlib.sha256(LIST.read_bytes() + sys.version.encode()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            making = folder.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--python", sys.executable]
            install = [*uv, "--require-hashes", "--no-deps", "--target", str(making), "-r", str(LIST)]
            done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=900)
            if done.returncode:
                pytest.skip(f"PyTorch cannot be installed: {done.stderr.strip()[-500:]}")
            # The trainer may not write here: its bytecode is made now.
            env = {**os.environ, "PYTHONPATH": str(making)}
            subprocess.run([sys.executable, "-c", "import torch"], env=env, check=True, timeout=300)
            making.rename(folder)
    return folder


def test_it_keeps_the_contract_and_its_model_needs_no_pytorch(
    torch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setenv("PYTHONPATH", str(torch))
    kept = tmp_path / "kept"
    code = main.main(
        ["trainer", "check", "--module", "torch_trainer:train", "--param", "epochs=5", "--keep", str(kept)]
    )
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.startswith("PyTorch 2.")
    assert "goes on from the checkpoint last.pt, and gives the same predictions in the end" in said
    assert said.endswith("breaches: 0, warnings: 0\n")
    weights = [np.load(found) for found in sorted(kept.glob("*/out/model/data/*/weights.npz"))]
    assert len(weights) == 3  # the first, again, and resumed: the same to the last bit
    assert all((one[name] == weights[0][name]).all() for one in weights[1:] for name in weights[0].files)

    monkeypatch.delenv("PYTHONPATH")
    assert subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False).returncode
    folders = [str(kept / "labels" / "scratch"), str(kept / "first" / "out" / "model")]
    ask = [sys.executable, "-m", "train_model.predict", "labels", "60", *folders]
    answer = subprocess.run(ask, capture_output=True, check=True, timeout=120).stdout
    assert len(json.loads(answer)["labels"]) == 400
