"""Bundles: what stock tools accept, and what reading refuses."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from aegis import signature
from aegis.errors import USAGE, VERIFICATION_FAILED, Permanent
from aegis.signature import Untrusted
from sign_model.keys import FileSigner
from tests.signing.world import World

TYPE = "application/vnd.test+json"
SIGNER = FileSigner("file:///test", ec.generate_private_key(ec.SECP256R1()))
OTHER = FileSigner("file:///other", ec.generate_private_key(ec.SECP256R1()))
KEYS = signature.trust([SIGNER.public_pem()])
BUNDLE = json.loads(signature.sign_json({"serial": 1}, TYPE, SIGNER))
FILE = json.loads(signature.sign_file("ab" * 32, SIGNER))


def changed(document: dict[str, Any], path: str, value: object) -> bytes:
    """The document with one place set, or deleted by `...`."""
    copy = json.loads(json.dumps(document))
    place = copy
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(copy).encode()


def test_a_document_comes_back_with_the_hint_of_its_key() -> None:
    bundle = signature.sign_json({"a": [1, "é", None]}, TYPE, SIGNER)
    assert signature.verify_json(bundle, TYPE, KEYS) == ({"a": [1, "é", None]}, *KEYS)


def test_a_digest_comes_back_with_the_hint_of_its_key() -> None:
    assert signature.verify_file(json.dumps(FILE).encode(), KEYS) == ("ab" * 32, *KEYS)


def test_the_hint_is_the_sha256_of_the_public_pem_and_keyid_is_empty() -> None:
    hint = hashlib.sha256(SIGNER.public_pem()).hexdigest()
    assert BUNDLE["verificationMaterial"]["publicKey"] == {"hint": hint}
    assert BUNDLE["dsseEnvelope"]["signatures"][0]["keyid"] == ""


B64 = base64.b64encode(b'{"serial": 2}').decode()
ENVELOPES: dict[str, tuple[str, object]] = {
    "another payload": ("dsseEnvelope.payload", B64),
    "another payload type": ("dsseEnvelope.payloadType", signature.IN_TOTO),
    "no signature": ("dsseEnvelope.signatures", []),
    "two signatures": ("dsseEnvelope.signatures", BUNDLE["dsseEnvelope"]["signatures"] * 2),
    "a signature that is no object": ("dsseEnvelope.signatures", ["x"]),
    "a signature that is no text": ("dsseEnvelope.signatures.0.sig", 1),
    "a signature that is not base64": ("dsseEnvelope.signatures.0.sig", "!!!!"),
    "an empty signature": ("dsseEnvelope.signatures.0.sig", ""),
    "a signature that is not DER": ("dsseEnvelope.signatures.0.sig", "AAAA"),
    "an unknown field": ("more", 1),
    "a message signature too": ("messageSignature", FILE["messageSignature"]),
    "a certificate too": ("verificationMaterial.certificate", {"rawBytes": ""}),
    "no media type": ("mediaType", ...),
    "another media type": ("mediaType", "application/vnd.dev.sigstore.bundle+json;version=0.1"),
    "another key": ("verificationMaterial.publicKey.hint", signature.hint(OTHER.key.public_key())),
    "no hint": ("verificationMaterial.publicKey", {}),
}


@pytest.mark.parametrize("what", ENVELOPES)
def test_an_altered_envelope_is_refused(what: str) -> None:
    with pytest.raises(Untrusted):
        signature.verify_json(changed(BUNDLE, *ENVELOPES[what]), TYPE, KEYS)


MESSAGES: dict[str, tuple[str, object]] = {
    "another digest": ("messageSignature.messageDigest.digest", base64.b64encode(b"\0" * 32).decode()),
    "a short digest": ("messageSignature.messageDigest.digest", "AAAA"),
    "another algorithm": ("messageSignature.messageDigest.algorithm", "SHA2_512"),
    "no digest": ("messageSignature.messageDigest", {}),
    "another signature": ("messageSignature.signature", BUNDLE["dsseEnvelope"]["signatures"][0]["sig"]),
}


@pytest.mark.parametrize("what", MESSAGES)
def test_an_altered_message_signature_is_refused(what: str) -> None:
    with pytest.raises(Untrusted):
        signature.verify_file(changed(FILE, *MESSAGES[what]), KEYS)


LAX = [b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":1e999}', b'{"a":' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}"]


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, *LAX])
def test_what_is_no_strict_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(Untrusted):
        signature.parse_json(data, 1 << 20)


def test_more_bytes_than_allowed_are_refused_unread() -> None:
    with pytest.raises(Untrusted, match="more than 4 bytes"):
        signature.parse_json(b'{"a":1}', 4)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_document_is_read_or_refused_never_a_crash(document: object) -> None:
    for data in (json.dumps(document).encode(), json.dumps({**BUNDLE, "dsseEnvelope": document}).encode()):
        with pytest.raises(Untrusted):
            signature.verify_json(data, TYPE, KEYS)


class Lies:
    """A signer that answers with another key's signature."""

    uri = "file:///lies"

    def public_pem(self) -> bytes:
        return SIGNER.public_pem()

    def sign_digest(self, digest: bytes) -> bytes:
        return OTHER.sign_digest(digest)


def test_a_signature_that_does_not_verify_never_leaves() -> None:
    calls: list[Callable[[], bytes]] = [
        lambda: signature.sign_json({}, TYPE, Lies()),
        lambda: signature.sign_file("ab" * 32, Lies()),
    ]
    for call in calls:
        with pytest.raises(Untrusted) as caught:
            call()
        assert caught.value.exit_code == VERIFICATION_FAILED


def test_a_digest_of_any_other_length_is_not_signed() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        signature.sign_file("abcd", SIGNER)


def test_trusted_keys_are_every_pub_file_and_bad_ones_are_all_named(world: World) -> None:
    assert len(world.trusted) == 1
    (world.trusted_dir / "other.pub").write_bytes(OTHER.public_pem())
    (world.trusted_dir / "notes.txt").write_text("not a key")
    assert len(world.trusted) == 2
    rsa_key = rsa.generate_private_key(65537, 2048).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (world.trusted_dir / "rsa.pub").write_bytes(rsa_key.public_bytes(serialization.Encoding.PEM, form))
    (world.trusted_dir / "bad.pub").write_text("not PEM")
    with pytest.raises(Permanent) as caught:
        signature.load_keys(world.trusted_dir)
    assert caught.value.faults.keys() == {"rsa.pub", "bad.pub"}
    assert caught.value.exit_code == USAGE


def test_a_key_on_a_curve_that_nobody_knows_is_a_fault(world: World) -> None:
    key = world.root / "signer.pem"
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der = bytearray(SIGNER.key.public_key().public_bytes(serialization.Encoding.DER, form))
    der[der.index(b"\x2a\x86\x48\xce\x3d\x03\x01\x07") + 7] = 0x70  # the last arc of the curve's name
    key.write_text(f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(der).decode()}\n-----END PUBLIC KEY-----\n")
    with pytest.raises(Permanent, match="not a P-256 key"):
        signature.load_keys(key)


def test_a_single_pem_file_of_any_name_is_trusted_too(world: World) -> None:
    key = world.root / "signer.pem"
    key.write_bytes(OTHER.public_pem())
    assert signature.load_keys(key) == signature.trust([OTHER.public_pem()])
    key.write_text("not PEM")
    with pytest.raises(Permanent, match=r"signer\.pem"):
        signature.load_keys(key)


def test_no_trusted_key_at_all_is_a_fault(world: World) -> None:
    for path in (world.root / "missing", world.root):
        with pytest.raises(Permanent, match=r"no \*\.pub file"):
            signature.load_keys(path)
