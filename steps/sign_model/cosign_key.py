"""The private key file that `cosign generate-key-pair` writes: a PEM around JSON, encrypted with a password.

scrypt makes a key of the password, NaCl's secretbox holds the PKCS#8. Reading is strict, and what a file may ask of
scrypt is capped before a byte is derived. Nothing here says why a file was refused: that text comes from a secret.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from aegis.strict import strict_json

MAX_FILE = 8192
"""Bytes. A key of P-256 takes 650."""
MAX_N, MAX_R, MAX_P = 1 << 17, 8, 2
"""scrypt's bounds: 128 MiB and about a second. cosign writes 65536, 8, 1; before 2.0, 32768."""
_PEM = re.compile(
    rb"\s*-----BEGIN ENCRYPTED (COSIGN|SIGSTORE) PRIVATE KEY-----\r?\n([A-Za-z0-9+/=\r\n]+)"
    rb"-----END ENCRYPTED \1 PRIVATE KEY-----\s*"
)


def is_cosign(pem: bytes) -> bool:
    """Whether this is such a file at all."""
    return b"-----BEGIN ENCRYPTED COSIGN " in pem or b"-----BEGIN ENCRYPTED SIGSTORE " in pem


def decrypt(pem: bytes, password: bytes) -> bytes:
    """The PKCS#8 (DER) inside. ValueError if the file is malformed, asks too much, or the password is wrong."""
    match = _PEM.fullmatch(pem)
    if match is None or len(pem) > MAX_FILE:
        raise ValueError("not a cosign key file")
    document = strict_json(base64.b64decode(match[2].translate(None, b"\r\n"), validate=True))
    kdf = _fields(document, "kdf", "cipher", "ciphertext")[0]
    name, params, salt = _fields(kdf, "name", "params", "salt")
    cipher, nonce = _fields(document["cipher"], "name", "nonce")
    if (name, cipher) != ("scrypt", "nacl/secretbox"):
        raise ValueError("not scrypt and nacl/secretbox")
    n, r, p = _fields(params, "N", "r", "p")
    if not all(type(value) is int for value in (n, r, p)):
        raise ValueError("scrypt's parameters are numbers")
    if not (2 <= n <= MAX_N and n & (n - 1) == 0 and 1 <= r <= MAX_R and 1 <= p <= MAX_P):
        raise ValueError("scrypt's parameters are out of bounds")
    salt, nonce, sealed = _bytes(salt, 16, 64), _bytes(nonce, 24, 24), _bytes(document["ciphertext"], 17, MAX_FILE)
    memory = 128 * r * (n + p + 2) + (1 << 16)  # what OpenSSL counts, and a little more
    key = hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=32)
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

    try:
        return SecretBox(key).decrypt(sealed, nonce)
    except CryptoError as error:
        raise ValueError("a wrong password, or damaged") from error


def _fields(document: object, *names: str) -> list[Any]:
    if not isinstance(document, dict) or document.keys() != set(names):
        raise ValueError(f"must have exactly {', '.join(names)}")
    return [document[name] for name in names]


def _bytes(text: object, least: int, most: int) -> bytes:
    if not isinstance(text, str):
        raise ValueError("must be base64")  # noqa: TRY004  all that is wrong with the file is a ValueError
    data = base64.b64decode(text, validate=True)
    if not least <= len(data) <= most:
        raise ValueError(f"must have {least} to {most} bytes")
    return data
