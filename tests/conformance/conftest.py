"""Both functions, running under each host in turn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.conformance.hosts import HOSTS, ROOT, FuncHost, Scaffolding
from tests.receiver.http_server import HttpServer, http_server
from tests.trigger.host import Host

KEY = b"a key of this suite's own"

Start = Callable[..., Host]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    subprocess.run([sys.executable, str(ROOT / "functions" / "bundle.py"), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def scaffolding(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Scaffolding:
    return Scaffolding.of(bundles, tmp_path_factory.mktemp("scaffolding"))


@pytest.fixture(scope="session", params=HOSTS)
def make(request: pytest.FixtureRequest) -> Start:
    """Makes a host of a function, from the function's name, its settings and the file of its log."""
    if request.param == "functions-framework":
        return Host
    scaffolding = request.getfixturevalue("scaffolding")

    def under_func_python(function: str, env: Mapping[str, str], log: Path) -> Host:
        return FuncHost(function, env, log, scaffolding=scaffolding)

    return under_func_python


@pytest.fixture(scope="session")
def sink() -> Iterator[HttpServer]:
    with http_server() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(sink: HttpServer) -> None:
    sink.got.clear()
    sink.answer = lambda _: (202, {}, b"")


def settings_of(function: str, home: Path, sink: HttpServer, **more: str) -> dict[str, str]:
    """The settings of a function that trusts a seal, and nobody for calling from this machine."""
    (home / "key").write_bytes(KEY)
    if function == "alert_receiver":
        own = {"K_SINK": sink.url, "AEGIS_SEAL_KEY_FILE": str(home / "key")}
    else:
        own = {
            "AEGIS_LEDGER": str(home / "ledger.db"),
            "AEGIS_SEAL_KEYS": str(home / "key"),
            "AEGIS_CREATE_UNKNOWN": "true",
            "AEGIS_DATASET_PREFIXES": "s3://data/",
            "AEGIS_BUDGET": "1000",
        }
    return own | more


@pytest.fixture(scope="session")
def receiver(make: Start, sink: HttpServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    home = tmp_path_factory.mktemp("receiver")
    with make("alert_receiver", settings_of("alert_receiver", home, sink), home / "log") as host:
        yield host.ready()


@pytest.fixture(scope="session")
def trigger(make: Start, sink: HttpServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    home = tmp_path_factory.mktemp("trigger")
    with make("retrain_trigger", settings_of("retrain_trigger", home, sink), home / "log") as host:
        yield host.ready()


@pytest.fixture(params=["receiver", "trigger"])
def either(request: pytest.FixtureRequest, receiver: Host, trigger: Host) -> Host:
    return receiver if request.param == "receiver" else trigger
