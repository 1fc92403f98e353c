"""Signing keys by URI, spelled as cosign spells them: a file on disk (PEM, or cosign's encrypted one), a transit key
of Vault or OpenBao, Google's KMS. P-256 only. Another place is another file with a `Signer`, and a line in `load`.

A key is never made by signing: `ensure` makes one, and only the one-machine commands call it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from aegis import signature
from aegis.errors import SIGNING_DENIED, USAGE, Permanent, Temporary
from aegis.signature import Signer, hint
from sign_model import cosign_key, gcpkms, secret_file, vault

T = TypeVar("T")
WAITS = (0.5, 1.5)
"""Seconds between three tries. A service that is gone for longer is for the next try of the whole step."""
_PEM = serialization.Encoding.PEM
_PUBLIC = serialization.PublicFormat.SubjectPublicKeyInfo


@dataclass(frozen=True, slots=True)
class FileSigner:
    """A P-256 key that was read from a file."""

    uri: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def public_pem(self) -> bytes:
        return self.key.public_key().public_bytes(_PEM, _PUBLIC)

    def sign_digest(self, digest: bytes) -> bytes:
        return self.key.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


@dataclass(frozen=True, slots=True)
class PatientSigner:
    """A key at a service, which is asked again for as long as that may help."""

    signer: Signer
    pause: Callable[[float], None] = field(repr=False)

    @property
    def uri(self) -> str:
        return self.signer.uri

    def public_pem(self) -> bytes:
        return signature.parse_public(self.signer.public_pem()).public_bytes(_PEM, _PUBLIC)

    def sign_digest(self, digest: bytes) -> bytes:
        return _patiently(lambda: self.signer.sign_digest(digest), self.pause)


def load(
    uri: str, env: Mapping[str, str] = MappingProxyType({}), pause: Callable[[float], None] = time.sleep
) -> Signer:
    """The key that the URI names. `Permanent` (77, or 64 for a setting) if it can't be had or is not fit to sign.

    `Temporary` if a service does not answer; `pause` waits between tries, for so many seconds.
    """
    match uri.partition("://")[0]:
        case "hashivault" | "openbao":
            return PatientSigner(_patiently(lambda: vault.load(uri, env), pause), pause)
        case "gcpkms":
            return PatientSigner(_patiently(lambda: gcpkms.load(uri, env), pause), pause)
        case _:
            return _from_file(uri, env)


def _patiently(work: Callable[[], T], pause: Callable[[float], None]) -> T:
    for wait in WAITS:
        try:
            return work()
        except Temporary:
            pause(wait)
    return work()


def _from_file(uri: str, env: Mapping[str, str]) -> FileSigner:
    if not uri.startswith("file:///"):
        kinds = "file:///..., hashivault://..., openbao://... or gcpkms://..."
        raise Permanent("signing key", {"uri": f"must be {kinds}"}, exit_code=SIGNING_DENIED)
    password: bytes | None = None
    pem = secret_file.read(Path(uri.removeprefix("file://")), uri, cosign_key.MAX_FILE)
    if cosign_key.is_cosign(pem):
        file = env.get("AEGIS_SIGNING_PASSWORD_FILE")
        if not file:
            why = f"missing, and {uri} is encrypted"
            raise Permanent("bad settings", {"AEGIS_SIGNING_PASSWORD_FILE": why}, exit_code=USAGE)
        password = secret_file.read(Path(file), "AEGIS_SIGNING_PASSWORD_FILE", 1024)
        password = password.removesuffix(b"\n").removesuffix(b"\r")  # an editor's line end, which cosign never sees
        wanted = "a cosign key file, or not of this password"
    else:
        wanted = "an unencrypted PEM"
    try:
        if password is None:
            key = serialization.load_pem_private_key(pem, None)
        else:
            key = serialization.load_der_private_key(cosign_key.decrypt(pem, password), None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        # What they say comes from a secret, and is not told.
        raise Permanent("signing key", {uri: f"not {wanted}"}, exit_code=SIGNING_DENIED) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise Permanent("signing key", {uri: "not a P-256 key"}, exit_code=SIGNING_DENIED)
    return FileSigner(uri, key)


def ensure(path: Path, trusted: Path | None = None) -> Signer:
    """The key at `path`, made with mode 0600 if none is there; its public half goes to `trusted`/<hint>.pub.

    Processes that start together end up with one key.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        _place(path, ec.generate_private_key(ec.SECP256R1()).private_bytes(_PEM, form, plain), os.link)
    signer = load(f"file://{path.resolve()}")
    if trusted is not None:
        trusted.mkdir(parents=True, exist_ok=True)
        public = signer.public_pem()
        name = hint(serialization.load_pem_public_key(public))[:16]  # type: ignore[arg-type]  # P-256 by `load`
        if not (trusted / f"{name}.pub").exists():
            _place(trusted / f"{name}.pub", public, os.replace)
    return signer


def _place(path: Path, data: bytes, move: Callable[[str, Path], None]) -> None:
    """Write all of a file (mode 0600) or none of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        move(temporary, path)
    except FileExistsError:
        pass  # somebody else was first, and theirs counts
    finally:
        Path(temporary).unlink(missing_ok=True)
