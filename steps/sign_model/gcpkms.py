"""Keys in Google Cloud KMS: `gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/N`.

Two calls of its REST interface, with what google-cloud-storage brings. Both ways are checked by crc32c, as Google asks
of its callers. One try: `keys` is patient.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aegis import signature
from aegis.errors import SIGNING_DENIED, Permanent, Temporary
from aegis.strict import strict_json

ENDPOINT = "https://cloudkms.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/cloudkms"
TIMEOUT = (3, 5)
"""Seconds to connect, and between two bytes of an answer."""
MAX_ANSWER = 64 << 10
_URI = re.compile(
    r"gcpkms://(projects/[A-Za-z0-9.:-]{1,100}/locations/[A-Za-z0-9-]{1,63}/keyRings/[\w-]{1,63}"
    r"/cryptoKeys/[\w-]{1,63}/cryptoKeyVersions/[1-9]\d{0,8})",
    re.ASCII,
)
_STATUS = re.compile(r"[A-Z_]{1,40}")


@dataclass(frozen=True, slots=True)
class KmsSigner:
    """One version of a key."""

    uri: str
    name: str
    pem: bytes
    endpoint: str
    session: Any = field(repr=False)

    def public_pem(self) -> bytes:
        return self.pem

    def sign_digest(self, digest: bytes) -> bytes:
        if len(digest) != 32:
            raise ValueError("a sha256 digest has 32 bytes")
        asked = {"digest": {"sha256": base64.b64encode(digest).decode()}, "digestCrc32c": str(_crc32c(digest))}
        answer = _ask(self.session, self.uri, "POST", f"{self.endpoint}/v1/{self.name}:asymmetricSign", asked)
        try:
            signed = base64.b64decode(answer["signature"], validate=True)
            intact = answer["verifiedDigestCrc32c"] is True and _same(answer["signatureCrc32c"], signed)
            named = answer["name"] == self.name
        except (KeyError, TypeError, ValueError) as error:
            raise _refused(self.uri, "the answer is not one of Google's KMS") from error
        if not intact:
            raise Temporary(f"signing key: {self.uri}: digest or signature was damaged on its way (crc32c)")
        if not named:
            raise _refused(self.uri, "the answer is about another key")
        return signed


def load(uri: str, env: Mapping[str, str], endpoint: str = ENDPOINT) -> KmsSigner:
    """The key version, its public half read and found fit. `Permanent` (77) or `Temporary` otherwise.

    The credential is the file in GOOGLE_APPLICATION_CREDENTIALS or, without it, the workload's own identity.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        why = "must be gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/N"
        raise Permanent("signing key", {"uri": why}, exit_code=SIGNING_DENIED)
    name, session = match[1], _session(uri, env)
    answer = _ask(session, uri, "GET", f"{endpoint}/v1/{name}/publicKey")
    try:
        pem = answer["pem"].encode()
        intact, named = _same(answer["pemCrc32c"], pem), answer["name"] == name
        fit = answer["algorithm"] == "EC_SIGN_P256_SHA256"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _refused(uri, "the answer is not one of Google's KMS") from error
    if not intact:
        raise Temporary(f"signing key: {uri}: the public key was damaged on its way (crc32c)")
    if not (named and fit):
        raise _refused(uri, "its algorithm must be EC_SIGN_P256_SHA256" if named else "the answer is about another key")
    try:
        signature.parse_public(pem)
    except ValueError as error:
        raise _refused(uri, "no P-256 public key") from error
    return KmsSigner(uri, name, pem, endpoint, session)


def _session(uri: str, env: Mapping[str, str]) -> Any:
    import google.auth
    from google.auth import exceptions as auth
    from google.auth.transport.requests import AuthorizedSession
    from google.oauth2 import service_account

    file = env.get("GOOGLE_APPLICATION_CREDENTIALS")
    try:
        if file:
            credentials = service_account.Credentials.from_service_account_file(file, scopes=[SCOPE])
        else:
            credentials, _ = google.auth.default(scopes=[SCOPE])
    except (auth.GoogleAuthError, ValueError, OSError) as error:
        raise _refused(uri, f"no credential for Google Cloud ({type(error).__name__})") from error
    return AuthorizedSession(credentials, refresh_timeout=sum(TIMEOUT))


def _ask(session: Any, uri: str, method: str, url: str, body: object = None) -> dict[str, Any]:
    import requests
    import urllib3
    from google.auth import exceptions as auth

    bounds = {"timeout": TIMEOUT, "max_allowed_time": 3 * sum(TIMEOUT), "allow_redirects": False, "stream": True}
    try:
        with session.request(method, url, json=body, **bounds) as answer:
            status, data = answer.status_code, answer.raw.read(MAX_ANSWER + 1, decode_content=True)
    except (requests.RequestException, urllib3.exceptions.HTTPError, auth.TransportError) as error:
        raise Temporary(f"signing key: {uri}: no answer ({type(error).__name__})") from error
    except auth.GoogleAuthError as error:
        if error.retryable:
            raise Temporary(f"signing key: {uri}: no access token now ({type(error).__name__})") from error
        raise _refused(uri, f"the credential is refused ({type(error).__name__})") from error
    if status == 429 or status >= 500:
        raise Temporary(f"signing key: {uri}: not now (HTTP {status})")
    try:
        document = strict_json(data)
        told = document["error"]["status"] if status != 200 else ""
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(uri, f"the answer is not one of Google's KMS (HTTP {status})") from error
    if status != 200:
        raise _refused(uri, f"refused, HTTP {status} {told if _STATUS.fullmatch(str(told)) else ''}".rstrip())
    if not isinstance(document, dict):
        raise _refused(uri, "the answer is not one of Google's KMS")
    return document


def _crc32c(data: bytes) -> int:
    import google_crc32c

    return int(google_crc32c.value(data))


def _same(told: object, data: bytes) -> bool:
    return int(str(told)) == _crc32c(data)


def _refused(uri: str, why: str) -> Permanent:
    return Permanent("signing key", {uri: why}, exit_code=SIGNING_DENIED)
