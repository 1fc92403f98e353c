"""Signing keys by URI: PEM files on disk (`file:///path`, P-256, unencrypted); another place, another class.

A key is never made by signing: `ensure` makes one, and only the one-machine commands call it.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from aegis.errors import SIGNING_DENIED, Permanent
from aegis.signature import Signer, hint

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


def load(uri: str) -> Signer:
    """The key that the URI names. `Permanent` (77) if it can't be had or is not fit to sign."""
    if not uri.startswith("file:///"):
        raise Permanent("signing key", {"uri": "must be file:///..."}, exit_code=SIGNING_DENIED)
    path = Path(uri.removeprefix("file://"))
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            pem = stream.read(8192)
    except OSError as error:
        raise Permanent("signing key", {uri: error.strerror or "cannot be read"}, exit_code=SIGNING_DENIED) from error
    if mode & stat.S_IRWXO:
        # A Secret mounted with its default mode is such a file: set defaultMode 0440 and fsGroup.
        raise Permanent("signing key", {uri: f"mode {mode & 0o777:04o} lets everyone in"}, exit_code=SIGNING_DENIED)
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (
        ValueError,
        TypeError,
    ) as error:  # neither the text nor the cause is told: both come from a secret
        raise Permanent("signing key", {uri: "not an unencrypted PEM"}, exit_code=SIGNING_DENIED) from error
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
