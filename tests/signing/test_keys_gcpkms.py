"""Keys in Google's KMS, against a small server of our own on loopback that speaks the two documented REST calls.

It is not Google's: what is tested is what we ask, what we check in the answers, and what we make of refusals. The
credential is a real service account file, whose token comes from the same server by the real exchange.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils

from aegis import signature
from aegis.errors import SIGNING_DENIED, TRANSIENT, Permanent, Temporary
from sign_model import gcpkms, keys

NAME = "projects/my-project/locations/europe-west3/keyRings/aegis/cryptoKeys/models/cryptoKeyVersions/2"
URI = f"gcpkms://{NAME}"
DIGEST = hashlib.sha256(b"a model").digest()
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, SPKI)
TOKEN = "ya29.hunter2"

Json = dict[str, Any]


def crc32c(data: bytes) -> str:
    return str(google_crc32c.value(data))


class Kms:
    """The server. `change` gets each answer (path, status, document) and may give another one."""

    def __init__(self) -> None:
        kms = self
        self.calls: list[str] = []
        self.change: Callable[[str, int, Json], tuple[int, object]] = lambda _path, status, document: (status, document)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(200, kms.public())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/token":
                    self._say(200, {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
                else:
                    self._say(200, kms.signed(json.loads(body)))

            def _say(self, status: int, document: Json) -> None:
                kms.calls.append(f"{self.command} {self.path}")
                known = self.path == "/token" or self.headers["Authorization"] == f"Bearer {TOKEN}"
                status, answer = kms.change(self.path, status if known else 401, document)
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def public(self) -> Json:
        return {"pem": PEM.decode(), "pemCrc32c": crc32c(PEM), "algorithm": "EC_SIGN_P256_SHA256", "name": NAME}

    def signed(self, asked: Json) -> Json:
        digest = base64.b64decode(asked["digest"]["sha256"])
        data = KEY.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
        return {
            "signature": base64.b64encode(data).decode(),
            "signatureCrc32c": crc32c(data),
            "verifiedDigestCrc32c": asked["digestCrc32c"] == crc32c(digest),
            "name": NAME,
        }


@pytest.fixture
def kms() -> Iterator[Kms]:
    kms = Kms()
    thread = threading.Thread(target=kms.server.serve_forever, args=(0.02,))
    thread.start()
    yield kms
    kms.server.shutdown()
    thread.join(20)
    kms.server.server_close()


@pytest.fixture(scope="module")
def account_key() -> str:
    key = rsa.generate_private_key(65537, 2048)
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain).decode()


@pytest.fixture
def env(kms: Kms, account_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What names the credential. The endpoint is Google's, and no setting: the tests put theirs in its place."""
    document = {
        "type": "service_account", "project_id": "my-project", "private_key_id": "1", "private_key": account_key,
        "client_email": "signer@my-project.iam.gserviceaccount.com", "token_uri": f"{kms.address}/token",
    }  # fmt: skip
    path = tmp_path / "account.json"
    path.write_text(json.dumps(document))
    real = gcpkms.load
    monkeypatch.setattr(gcpkms, "load", lambda uri, env: real(uri, env, kms.address))
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(path)}


def test_a_key_version_signs(kms: Kms, env: dict[str, str]) -> None:
    signer = keys.load(URI, env)
    assert (signer.uri, signer.public_pem()) == (URI, PEM)
    signature.sign_file(DIGEST.hex(), signer)  # which verifies
    assert kms.calls == ["POST /token", f"GET /v1/{NAME}/publicKey", f"POST /v1/{NAME}:asymmetricSign"]
    assert TOKEN not in repr(signer)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_only_a_sha256_digest_is_signed(env: dict[str, str], size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        keys.load(URI, env).sign_digest(b"x" * size)


def error(status: int, name: str) -> tuple[int, Json]:
    return status, {"error": {"code": status, "status": name, "message": f"{TOKEN} is not told"}}


@pytest.mark.parametrize("path", ["publicKey", "asymmetricSign"])
@pytest.mark.parametrize(
    "answer",
    [
        error(400, "FAILED_PRECONDITION"), error(401, "UNAUTHENTICATED"), error(403, "PERMISSION_DENIED"),
        error(404, "NOT_FOUND"),
    ],
)  # fmt: skip
def test_a_refusal_is_named_and_not_asked_again(
    kms: Kms, env: dict[str, str], path: str, answer: tuple[int, Json]
) -> None:
    kms.change = lambda where, status, document: answer if where.endswith(path) else (status, document)
    pauses: list[float] = []
    with pytest.raises(Permanent) as caught:
        keys.load(URI, env, pauses.append).sign_digest(DIGEST)
    assert caught.value.exit_code == SIGNING_DENIED
    assert caught.value.faults == {URI: f"refused, HTTP {answer[0]} {answer[1]['error']['status']}"}
    assert pauses == []


@pytest.mark.parametrize("path", ["publicKey", "asymmetricSign"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_waited_for_and_a_lasting_one_is_temporary(
    kms: Kms, env: dict[str, str], path: str, status: int
) -> None:
    left = [2]

    def change(where: str, good: int, document: Json) -> tuple[int, object]:
        if where.endswith(path) and left[0]:
            left[0] -= 1
            return status, b"<html>"
        return good, document

    kms.change = change
    pauses: list[float] = []
    signature.sign_file(DIGEST.hex(), keys.load(URI, env, pauses.append))
    assert pauses == list(keys.WAITS)
    left[0] = 99
    with pytest.raises(Temporary, match=f"HTTP {status}") as caught:
        keys.load(URI, env, pauses.append).sign_digest(DIGEST)
    assert caught.value.exit_code == TRANSIENT
    assert left[0] == 96


def test_nobody_there_is_temporary(kms: Kms, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    kms.server.socket.close()
    monkeypatch.setattr(gcpkms, "TIMEOUT", (0.2, 0.2))
    with pytest.raises(Temporary, match="no answer"):
        keys.load(URI, env, [0.0].append)


SIGNATURE = KEY.sign(DIGEST, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
ANSWERS: dict[str, tuple[str, Json | bytes, type[Exception]]] = {
    "the key of another algorithm": ("publicKey", {"algorithm": "EC_SIGN_P384_SHA384"}, Permanent),
    "another key": ("publicKey", {"name": NAME[:-1] + "3"}, Permanent),
    "no key": ("publicKey", {"pem": None}, Permanent),
    "a key that is none": ("publicKey", {"pem": "x", "pemCrc32c": crc32c(b"x")}, Permanent),
    "a damaged key": ("publicKey", {"pemCrc32c": "1"}, Temporary),
    "a checksum that is none": ("publicKey", {"pemCrc32c": "x"}, Permanent),
    "a list": ("publicKey", b"[]", Permanent),
    "a page": ("publicKey", b"<html>", Permanent),
    "an answer without end": ("publicKey", b" " * (gcpkms.MAX_ANSWER + 9), Permanent),
    "a field twice": ("publicKey", b'{"pem": "x", "pem": "y"}', Permanent),
    "a damaged signature": ("asymmetricSign", {"signatureCrc32c": "1"}, Temporary),
    "a damaged digest": ("asymmetricSign", {"verifiedDigestCrc32c": False}, Temporary),
    "a digest that was not checked": ("asymmetricSign", {"verifiedDigestCrc32c": None}, Temporary),
    "another key's signature": ("asymmetricSign", {"name": NAME[:-1] + "3"}, Permanent),
    "no signature": ("asymmetricSign", {"signature": None}, Permanent),
    "no base64": ("asymmetricSign", {"signature": "?"}, Permanent),
}


@pytest.mark.parametrize(("path", "wrong", "kind"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_checked(
    kms: Kms, env: dict[str, str], path: str, wrong: Json | bytes, kind: type[Exception]
) -> None:
    def change(where: str, status: int, document: Json) -> tuple[int, object]:
        if not where.endswith(path):
            return status, document
        return status, wrong if isinstance(wrong, bytes) else document | wrong

    kms.change = change
    with pytest.raises(kind, match="signing key"):
        keys.load(URI, env, [0.0].append).sign_digest(DIGEST)


def test_a_signature_by_another_key_never_leaves(kms: Kms, env: dict[str, str]) -> None:
    forged = OTHER.sign(DIGEST, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    changed = {"signature": base64.b64encode(forged).decode(), "signatureCrc32c": crc32c(forged)}
    kms.change = lambda where, status, document: (status, document | changed if "asymm" in where else document)
    with pytest.raises(signature.Untrusted, match="does not match"):
        signature.sign_file(DIGEST.hex(), keys.load(URI, env))


@pytest.mark.parametrize("content", [None, "{}", "x", '{"type": "service_account"}'])
def test_a_credential_that_is_none_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "account.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Permanent, match="no credential for Google Cloud") as caught:
        keys.load(URI, {"GOOGLE_APPLICATION_CREDENTIALS": str(path)})
    assert caught.value.exit_code == SIGNING_DENIED


def test_a_credential_that_is_refused_is_named(kms: Kms, env: dict[str, str]) -> None:
    kms.change = lambda where, status, doc: (400, {"error": "invalid_grant"}) if where == "/token" else (status, doc)
    with pytest.raises(Permanent, match="the credential is refused") as caught:
        keys.load(URI, env)
    assert caught.value.exit_code == SIGNING_DENIED


@pytest.mark.parametrize(
    "uri",
    [
        "gcpkms://", f"gcpkms://{NAME.rpartition('/cryptoKeyVersions')[0]}", f"{URI}x", f"{URI}/", f"{URI}?x",
        f"{URI}\n",
        URI.replace("models", "../x"), URI.replace("gcpkms://", "gcpkms:///"), URI.replace("/2", "/0"),
    ],
)  # fmt: skip
def test_another_spelling_is_refused_before_anybody_is_asked(uri: str) -> None:
    with pytest.raises(Permanent, match="must be gcpkms://projects/P/") as caught:
        keys.load(uri)
    assert caught.value.exit_code == SIGNING_DENIED
