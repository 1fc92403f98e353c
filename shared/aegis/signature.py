"""Signatures that stock tools verify: sigstore bundles v0.3 over P-256, with `cryptography` alone.

Two kinds: a DSSE envelope around JSON (in-toto statements, and our pointer under its own payload type), and a
plain signature over a file's digest. Reading is strict and bounded: what these functions did not write, they
refuse. Nothing here knows what a statement means.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from aegis.errors import USAGE, VERIFICATION_FAILED, Permanent
from aegis.strict import strict_json

IN_TOTO = "application/vnd.in-toto+json"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_BUNDLE = 16 << 20
"""model.sig names every file of a model: 10,000 long names fit; more is not ours."""
_MARKS = 64
"""Commas and brackets in a bundle: ours has 13, and its bulk is one base64 text. 16 MiB of them would be 400 MB."""

Keys = Mapping[str, ec.EllipticCurvePublicKey]
"""Trusted public keys by hint, the hex sha256 of the public PEM."""


class Signer(Protocol):
    """A private key somewhere. `uri` names it, with its version where there are versions, and no secret."""

    @property
    def uri(self) -> str: ...

    def public_pem(self) -> bytes: ...

    def sign_digest(self, digest: bytes) -> bytes:
        """The DER signature over a sha256 digest (32 bytes)."""
        ...


class Untrusted(Permanent):
    """A signature is missing, broken or not by a trusted key."""

    exit_code = VERIFICATION_FAILED


def parse_public(pem: bytes) -> ec.EllipticCurvePublicKey:
    """A P-256 public key from PEM; ValueError if it is anything else."""
    if len(pem) > 4096:
        raise ValueError("too long for a public key")
    try:
        key = serialization.load_pem_public_key(pem)
    except (UnsupportedAlgorithm, InternalError) as error:  # neither is a ValueError
        raise ValueError("not a P-256 key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ValueError("not a P-256 key")
    return key


def hint(key: ec.EllipticCurvePublicKey) -> str:
    """The hex sha256 of the key's canonical PEM, by which bundles name it."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.PEM, form)).hexdigest()


def trust(pems: Iterable[bytes]) -> Keys:
    """Keys to trust from their PEM texts; ValueError for one that is not P-256."""
    return {hint(key): key for key in map(parse_public, pems)}


def load_keys(path: Path) -> Keys:
    """Trusted keys (PEM, P-256): one file, or every *.pub of a folder. `Permanent` (64) if one is bad or none there."""
    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    faults: dict[str, str] = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.pub")):
        try:
            keys.update(trust([file.read_bytes()]))
        except (OSError, ValueError) as error:
            faults[file.name] = str(error)
    if not keys and not faults:
        faults[str(path)] = "no *.pub file: without a trusted key nothing can be verified"
    if faults:
        raise Permanent("trusted keys", faults, exit_code=USAGE)
    return keys


def sign_json(document: Mapping[str, Any], payload_type: str, signer: Signer) -> bytes:
    """A bundle around a DSSE envelope around the document. Verified before it is returned."""
    payload = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    signature, material = _sign(hashlib.sha256(_pae(payload_type, payload)).digest(), signer)
    envelope = {
        "payload": _text(payload),
        "payloadType": payload_type,
        "signatures": [{"sig": _text(signature), "keyid": ""}],  # sigstore's Go library refuses a set keyid
    }
    return _bundle(material, {"dsseEnvelope": envelope})


def sign_file(sha256: str, signer: Signer) -> bytes:
    """A bundle with a signature over a file's digest (hex), as `cosign verify-blob --bundle` reads it."""
    digest = bytes.fromhex(sha256)
    signature, material = _sign(digest, signer)
    message = {
        "messageDigest": {"algorithm": "SHA2_256", "digest": _text(digest)},
        "signature": _text(signature),
    }
    return _bundle(material, {"messageSignature": message})


def verify_json(bundle: bytes, payload_type: str, keys: Keys) -> tuple[dict[str, Any], str]:
    """The document of a bundle made by `sign_json`, and the hint of its key. `Untrusted` otherwise."""
    used, envelope = _open(bundle, "dsseEnvelope", keys)
    _fields(envelope, {"payload": str, "payloadType": str, "signatures": list}, "dsseEnvelope")
    signatures = envelope["signatures"]
    if envelope["payloadType"] != payload_type:
        raise Untrusted(f"payloadType is not {payload_type}")
    if len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise Untrusted("exactly one signature is wanted")
    _fields(signatures[0], {"sig": str, "keyid": str}, "signature")
    payload = _bytes(envelope["payload"])
    _verify(keys[used], _bytes(signatures[0]["sig"]), hashlib.sha256(_pae(payload_type, payload)).digest())
    return parse_json(payload, MAX_BUNDLE), used


def verify_file(bundle: bytes, keys: Keys) -> tuple[str, str]:
    """The sha256 (hex) that a bundle by `sign_file` is over, and its key's hint. `Untrusted` otherwise."""
    used, message = _open(bundle, "messageSignature", keys)
    _fields(message, {"messageDigest": dict, "signature": str}, "messageSignature")
    _fields(message["messageDigest"], {"algorithm": str, "digest": str}, "messageDigest")
    digest = _bytes(message["messageDigest"]["digest"])
    if message["messageDigest"]["algorithm"] != "SHA2_256" or len(digest) != 32:
        raise Untrusted("messageDigest is not a sha256")
    _verify(keys[used], _bytes(message["signature"]), digest)
    return digest.hex(), used


def parse_json(data: bytes, limit: int) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes, strictly read. `Untrusted` otherwise."""
    if len(data) > limit:
        raise Untrusted(f"more than {limit} bytes")
    try:
        document = strict_json(data)
    except ValueError as error:
        raise Untrusted("not the JSON that is wanted here") from error
    if not isinstance(document, dict):
        raise Untrusted("not a JSON object")
    return document


def _sign(digest: bytes, signer: Signer) -> tuple[bytes, str]:
    key = parse_public(signer.public_pem())
    if len(digest) != 32:  # some key services sign anything of any length without a word
        raise ValueError("a sha256 digest has 32 bytes")
    signature = signer.sign_digest(digest)
    _verify(key, signature, digest)
    return signature, hint(key)


def _verify(key: ec.EllipticCurvePublicKey, signature: bytes, digest: bytes) -> None:
    try:
        key.verify(signature, digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except InvalidSignature as error:
        raise Untrusted("the signature does not match") from error


def _bundle(used: str, content: dict[str, Any]) -> bytes:
    material = {"publicKey": {"hint": used}, "tlogEntries": []}
    return json.dumps({"mediaType": MEDIA_TYPE, "verificationMaterial": material, **content}).encode()


def _open(bundle: bytes, kind: str, keys: Keys) -> tuple[str, dict[str, Any]]:
    if sum(map(bundle.count, (b",", b"{", b"["))) > _MARKS:
        raise Untrusted("not a sigstore bundle v0.3")
    document = parse_json(bundle, MAX_BUNDLE)
    _fields(document, {"mediaType": str, "verificationMaterial": dict, kind: dict}, "bundle")
    material = document["verificationMaterial"]
    _fields(material, {"publicKey": dict, "tlogEntries": list}, "verificationMaterial")
    _fields(material["publicKey"], {"hint": str}, "publicKey")
    if document["mediaType"] != MEDIA_TYPE:
        raise Untrusted("not a sigstore bundle v0.3")
    if material["publicKey"]["hint"] not in keys:
        raise Untrusted("signed by a key that is not trusted")
    return material["publicKey"]["hint"], document[kind]


def _fields(document: dict[str, Any], wanted: Mapping[str, type], where: str) -> None:
    if document.keys() != wanted.keys() or not all(isinstance(document[name], kind) for name, kind in wanted.items()):
        raise Untrusted(f"{where} must have exactly {', '.join(sorted(wanted))}")


def _pae(payload_type: str, payload: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Untrusted("not base64") from error
