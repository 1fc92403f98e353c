"""Keys in the transit engine of Vault or OpenBao: `hashivault://KEY`, `openbao://KEY`, each also with `?version=N`.

The private key never leaves the server. Each call has a token of its own: log in with the pod's projected token, ask,
revoke. So a token lives for milliseconds, and none is held while gigabytes are hashed. One try: `keys` is patient.
"""

from __future__ import annotations

import base64
import io
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from aegis import signature
from aegis.errors import SIGNING_DENIED, Permanent, Temporary
from aegis.names import printable
from aegis.step import Reader
from sign_model import secret_file

TIMEOUT = (2, 4)
"""Seconds to connect, and between two bytes of an answer. A signature takes 2 ms; three tries, half a minute."""
MAX_ANSWER = 1 << 20
"""Bytes. A key with 1,000 versions takes 400 KB."""
MAX_TOKEN = 16 << 10
T = TypeVar("T")
_URI = re.compile(r"(hashivault|openbao)://(\w(?:[\w.-]{0,126}\w)?)(?:\?version=([1-9]\d{0,8}))?", re.ASCII)
_PATH = re.compile(r"\w[\w-]*(?:/\w[\w-]*){0,7}", re.ASCII)
_ROLE = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_TOKEN = re.compile(rb"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server is and how to log in. For `openbao://` BAO_ADDR and the like win over VAULT_ADDR."""

    address: str
    """VAULT_ADDR. https, or http on loopback: a token never travels in the clear."""
    namespace: str
    """VAULT_NAMESPACE; empty where there are none."""
    ca: str
    """VAULT_CACERT, a PEM file of what signed the server's certificate. Empty: the public authorities."""
    transit: str
    """AEGIS_VAULT_TRANSIT_MOUNT, by default `transit`."""
    auth: str
    """AEGIS_VAULT_AUTH_MOUNT of the Kubernetes auth method, by default `kubernetes`."""
    role: str
    """AEGIS_VAULT_ROLE, the role of the Kubernetes auth method. Either this or a token file."""
    jwt_file: Path
    """AEGIS_VAULT_JWT_FILE, the pod's projected token, by default where the WorkflowTemplate mounts it."""
    token_file: Path | None
    """AEGIS_VAULT_TOKEN_FILE, a token that somebody else (an agent, say) keeps valid. Used as it is, never revoked."""

    @classmethod
    def from_env(cls, env: Mapping[str, str], openbao: bool) -> Settings:
        """Read and check all of it; `Permanent` (64) names every fault."""

        def name(what: str) -> str:
            return f"BAO_{what}" if openbao and env.get(f"BAO_{what}") else f"VAULT_{what}"

        read = Reader(env)
        token_file = read.text("AEGIS_VAULT_TOKEN_FILE", empty=True)
        found = cls(
            address=read.text(name("ADDR")),
            namespace=read.text(name("NAMESPACE"), _PATH, empty=True),
            ca=read.text(name("CACERT"), empty=True),
            transit=read.text("AEGIS_VAULT_TRANSIT_MOUNT", _PATH, empty=True) or "transit",
            auth=read.text("AEGIS_VAULT_AUTH_MOUNT", _PATH, empty=True) or "kubernetes",
            role=read.text("AEGIS_VAULT_ROLE", _ROLE, empty=True),
            jwt_file=Path(env.get("AEGIS_VAULT_JWT_FILE") or "/aegis/vault/token"),
            token_file=Path(token_file) if token_file else None,
        )
        if found.address and not _safe(found.address):
            read.faults[name("ADDR")] = "must be https://host[:port]; http:// only on loopback"
        if found.ca:
            try:
                ssl.create_default_context(cafile=found.ca)
            except OSError as error:  # those of ssl are too
                read.faults[name("CACERT")] = error.strerror or "not a PEM file of certificates"
        if bool(found.role) == bool(found.token_file):
            read.faults["AEGIS_VAULT_ROLE"] = "set either this or AEGIS_VAULT_TOKEN_FILE"
        read.check()
        return found


def _safe(address: str) -> bool:
    try:
        parts = urlsplit(address)
        port, host = parts.port, parts.hostname
    except ValueError:
        return False
    secure = parts.scheme == "https" or (parts.scheme == "http" and host in ("127.0.0.1", "::1", "localhost"))
    extra = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    return secure and bool(host) and port != 0 and not extra


@dataclass(frozen=True, slots=True)
class VaultSigner:
    """One version of a transit key. `uri` names the version, also where it was the newest."""

    uri: str
    key: str
    version: int
    pem: bytes
    settings: Settings

    def public_pem(self) -> bytes:
        return self.pem

    def sign_digest(self, digest: bytes) -> bytes:
        if len(digest) != 32:  # the server signs anything of any length without a word
            raise ValueError("a sha256 digest has 32 bytes")

        def sign(client: Any) -> bytes:
            answer = client.secrets.transit.sign_data(
                self.key,
                hash_input=base64.b64encode(digest).decode(),
                hash_algorithm="sha2-256",
                prehashed=True,
                marshaling_algorithm="asn1",
                key_version=self.version,
                mount_point=self.settings.transit,
            )
            marker, _, text = answer["data"]["signature"].rpartition(":")
            if marker != f"vault:v{self.version}":
                raise ValueError("signed by another version")
            return base64.b64decode(text, validate=True)

        where = f"{self.settings.transit}/sign/{self.key}"
        try:
            return _ask(self.settings, self.uri, where, sign)
        except _Internal:
            # A version that may no longer sign is answered like a broken server: look which of the two it is.
            _read(self.settings, self.uri, self.key, self.version)
            raise


class _Denied(Permanent):
    """403: a policy, or a token that has ended; the answer is the same."""

    exit_code = SIGNING_DENIED


class _Internal(Temporary):
    """500, which need not be the server's fault."""


def load(uri: str, env: Mapping[str, str]) -> VaultSigner:
    """The key, its public half read and found fit. `Permanent` (64, 77) or `Temporary` otherwise."""
    match = _URI.fullmatch(uri)
    if match is None:
        why = "must be hashivault://KEY or openbao://KEY, or one of them with ?version=N"
        raise Permanent("signing key", {"uri": why}, exit_code=SIGNING_DENIED)
    settings = Settings.from_env(env, match[1] == "openbao")
    version, pem = _read(settings, uri, match[2], int(match[3] or 0))
    return VaultSigner(f"{match[1]}://{match[2]}?version={version}", match[2], version, pem, settings)


def _read(settings: Settings, uri: str, key: str, version: int) -> tuple[int, bytes]:
    """The version (0: the newest) and its public PEM. `Permanent` (77) if it may not or can't sign for us."""

    def read(client: Any) -> tuple[str, int, int, dict[str, str]]:
        found = client.secrets.transit.read_key(key, mount_point=settings.transit)["data"]
        kind, newest, oldest = found["type"], found["latest_version"], found["min_encryption_version"]
        if kind != "ecdsa-p256":
            return str(kind), 0, 0, {}
        return kind, int(newest), int(oldest), {n: one["public_key"] for n, one in found["keys"].items()}

    where = f"{settings.transit}/keys/{key}"
    kind, newest, oldest, pems = _ask(settings, uri, where, read)
    version = version or newest
    fault = ""
    if kind != "ecdsa-p256":
        fault = f"is of type {printable(kind)[:40]}, must be ecdsa-p256"
    elif str(version) not in pems:
        fault = f"has no version {version}, or no longer; the newest is {newest}"
    elif version < oldest:
        fault = f"version {version} is retired: min_encryption_version is {oldest}"
    if fault:
        raise Permanent("signing key", {uri: f"{where}: {fault}"}, exit_code=SIGNING_DENIED)
    try:
        pem = pems[str(version)].encode()
        signature.parse_public(pem)
    except (AttributeError, ValueError) as error:
        raise Permanent("signing key", {uri: f"{where}: no P-256 public key"}, exit_code=SIGNING_DENIED) from error
    return version, pem


def _ask(settings: Settings, uri: str, where: str, call: Callable[[Any], T]) -> T:
    """What `call(client)` gives, with a token that was made for it.

    A refusal may mean that the token ended on the way (its lease was revoked, say): one new login tells.
    """
    try:
        return _once(settings, uri, where, call)
    except _Denied:
        if settings.token_file:
            raise
    return _once(settings, uri, where, call)


def _once(settings: Settings, uri: str, where: str, call: Callable[[Any], T]) -> T:
    with _client(settings) as client:
        if settings.token_file:
            client.token = _token(settings.token_file, "AEGIS_VAULT_TOKEN_FILE")
            with _errors(
                uri, where, "the token in AEGIS_VAULT_TOKEN_FILE has ended, or its policies lack this", client
            ):
                return call(client)
        jwt, role = _token(settings.jwt_file, "AEGIS_VAULT_JWT_FILE"), settings.role
        login = f"auth/{settings.auth}/login as role {role}"
        advice = "is the role bound to this pod's service account, namespace and audience, and the pod's token valid?"
        with _errors(uri, login, advice, client, jwt, denied=Permanent):
            answer = client.auth.kubernetes.login(role, jwt, use_token=False, mount_point=settings.auth)
            client.token = answer["auth"]["client_token"].strip()
        try:
            with _errors(uri, where, f"do the policies of role {role} allow this?", client, jwt):
                return call(client)
        finally:
            # It ends by itself soon, should this fail; and an error that is under way counts for more.
            with suppress(Permanent, Temporary), _errors(uri, "auth/token/revoke-self", "", client, jwt):
                client.auth.token.revoke_self()


@contextmanager
def _client(settings: Settings) -> Iterator[Any]:
    import hvac
    import requests

    class Bounded(requests.Session):
        """Answers of bounded size."""

        def request(self, *args: Any, **kwargs: Any) -> requests.Response:
            answer = super().request(*args, **kwargs | {"stream": True})
            body = answer.raw.read(MAX_ANSWER + 1, decode_content=True)
            if len(body) > MAX_ANSWER:
                raise requests.exceptions.ContentDecodingError("too long an answer")
            answer.raw = io.BytesIO(body)
            return answer

    with Bounded() as session:
        session.trust_env = False  # no proxy is to read along, and .netrc has nothing for us
        session.verify = settings.ca or True
        yield hvac.Client(
            settings.address,
            token="",  # or hvac takes one from wherever it finds it
            timeout=TIMEOUT,
            allow_redirects=False,  # the token would follow
            session=session,
            namespace=settings.namespace or None,
        )


@contextmanager
def _errors(
    uri: str, where: str, advice: str, client: Any, jwt: str = "", *, denied: type[Permanent] | None = None
) -> Iterator[None]:
    """What hvac and requests raise, as `Permanent` (77) or `Temporary`: with the server's words, without a token."""
    import requests
    import urllib3
    from hvac import exceptions as vault

    def told(error: Exception) -> str:
        text = " ".join(" ".join(map(str, getattr(error, "errors", None) or ["no reason told"])).split())
        for secret in filter(None, (client.token, jwt)):
            text = text.replace(secret, "***")
        return printable(text)[:300]

    def refused(why: str, kind: type[Permanent] = Permanent) -> Permanent:
        return kind("signing key", {uri: f"{where}: {why}"}, exit_code=SIGNING_DENIED)

    try:
        yield
    except (vault.Forbidden, vault.Unauthorized) as error:
        raise refused(f"{told(error)}; {advice}", denied or _Denied) from error
    except (vault.InvalidRequest, vault.InvalidPath) as error:
        raise refused(f"is not there, or not to be had like this ({told(error)})") from error
    except vault.InternalServerError as error:
        raise _Internal(f"signing key: {uri}: {where}: the server failed ({told(error)})") from error
    except vault.VaultError as error:  # sealed, throttled, a standby, a gateway's answer
        raise Temporary(f"signing key: {uri}: {where}: not now ({told(error)})") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise refused("the server's certificate is not trusted; is the CA right?") from error
        raise Temporary(f"signing key: {uri}: {where}: no answer ({type(error).__name__})") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise refused("the answer is not one of such a server") from error


def _token(path: Path, setting: str) -> str:
    data = secret_file.read(path, setting, MAX_TOKEN, private=setting == "AEGIS_VAULT_TOKEN_FILE").strip()
    if not _TOKEN.fullmatch(data):
        raise Permanent("signing key", {setting: "holds no token"}, exit_code=SIGNING_DENIED)
    return data.decode()
