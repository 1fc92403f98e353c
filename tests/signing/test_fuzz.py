"""Foreign bytes of every kind that signing reads, altered where it hurts: each is read as it was signed, or refused.

Inputs know the format that they break. At least three in ten get past the first check, or the test fails: what is
refused at the door finds nothing.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacl.secret import SecretBox

from aegis import manifest, package, pointer, signature
from aegis.errors import Permanent
from aegis.package import MODEL_SIG, PROVENANCE, RESULT
from aegis.signature import IN_TOTO, Untrusted
from aegis.strict import strict_json
from sign_model import cosign_key, keys
from sign_model.keys import FileSigner
from tests.signing.world import World, process_env

T = TypeVar("T")
PAST = 0.3
KEY = ec.generate_private_key(ec.SECP256R1())
SIGNER = FileSigner("file:///test", KEY)
KEYS = signature.trust([SIGNER.public_pem()])
FILES = {"MLmodel": b"flavors: {}\n", "data/weights.bin": b"w" * 700, "data/\u00fcnicode": b"", "data.txt": b"x" * 512}


def fuzz(inputs: st.SearchStrategy[T], past: Callable[[T], bool], read: Callable[[T], object], examples: int) -> None:
    """Read many inputs; nothing but `Permanent` may come out, in five seconds each; count who gets past the door."""
    seen: list[bool] = []

    @settings(
        max_examples=examples,
        deadline=timedelta(seconds=5),
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(inputs)
    def one(given_: T) -> None:
        seen.append(past(given_))
        try:
            read(given_)
        except Permanent:  # Untrusted is one
            return

    one()
    assert sum(seen) >= PAST * len(seen), f"only {sum(seen)} of {len(seen)} got past the first check"


def passes(check: Callable[[], object]) -> bool:
    try:
        check()
    except (Permanent, ValueError):
        return False
    return True


# --- JSON, altered by places --------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**63, -(10**30), 1.5, True])
TEXTS = st.sampled_from(
    ["", "A", "AAAA", "ab" * 32, "AB" * 32, "../x", "/x", ".git/x", "a//b", "\u202e", "e\u0301", "\ud800", "x" * 3000]
)
LEAVES = NUMBERS | TEXTS | st.none() | st.text(max_size=6)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all that the document holds."""
    found = [path] if path else []
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in pairs:
        found += places(value, (*path, key))
    return found


@st.composite
def twisted(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """The document with up to `most` places replaced, removed, renamed, doubled or nudged."""
    twin = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, most))):
        found = places(twin)
        if not found:
            break
        *parents, last = draw(st.sampled_from(found))
        home = twin
        for key in parents:
            home = home[key]
        value = home[last]
        match draw(st.sampled_from(["replace", "remove", "more", "double", "nudge"])):
            case "remove":
                del home[last]
            case "more" if isinstance(home, dict):
                home[draw(TEXTS)] = draw(VALUES)
            case "double" if isinstance(home, list):
                home.append(copy.deepcopy(value))
            case "nudge" if isinstance(value, str) and value:
                at = draw(st.integers(0, len(value) - 1))
                home[last] = value[:at] + draw(st.sampled_from(["A", "0", "=", "/", ""])) + value[at + 1 :]
            case _:
                home[last] = draw(VALUES)
    return twin


def spelled(document: Any) -> st.SearchStrategy[bytes]:
    """JSON as a careful, a lavish and a careless writer would spell it."""
    text = json.dumps(document)
    lax = [
        b"\xef\xbb\xbf" + text.encode(),
        text.encode()[:-1],
        text.encode() + b"x",
        text.replace(":", ":NaN,", 1).encode(),
    ]
    good = st.sampled_from([text, json.dumps(document, indent=1), " " + text + "\n"]).map(str.encode)
    return st.one_of(good, good, good, good, st.sampled_from(lax))


STATEMENT = {"_type": "x", "subject": [{"name": "digits", "digest": {"sha256": "ab" * 32}}], "predicate": {"n": 1}}
JSON_BUNDLE = json.loads(signature.sign_json(STATEMENT, IN_TOTO, SIGNER))
FILE_BUNDLE = json.loads(signature.sign_file("ab" * 32, SIGNER))


def opens(data: bytes) -> bool:
    kind = "dsseEnvelope" if b"dsseEnvelope" in data else "messageSignature"
    return passes(lambda: signature._open(data, kind, KEYS))


def test_a_bundle_says_what_was_signed_or_is_refused() -> None:
    def read(data: bytes) -> None:
        try:
            told: object = signature.verify_json(data, IN_TOTO, KEYS)[0]
        except Untrusted:
            told = STATEMENT
        assert told == STATEMENT
        try:
            digest = signature.verify_file(data, KEYS)[0]
        except Untrusted:
            digest = "ab" * 32
        assert digest == "ab" * 32

    envelope = twisted(JSON_BUNDLE["dsseEnvelope"]).map(lambda new: {**JSON_BUNDLE, "dsseEnvelope": new})
    message = twisted(FILE_BUNDLE["messageSignature"]).map(lambda new: {**FILE_BUNDLE, "messageSignature": new})
    inputs = st.one_of(twisted(JSON_BUNDLE, 2), twisted(FILE_BUNDLE, 2), envelope, message).flatmap(spelled)
    fuzz(inputs, opens, read, 800)


def pack(files: dict[str, bytes]) -> tuple[bytes, manifest.Packed]:
    """What manifest.pack makes of a directory with these files."""
    listed = tuple(manifest.File(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items())
    members = [manifest._header(path, len(data)) + data + b"\0" * (-len(data) % 512) for path, data in files.items()]
    tar = b"".join(members)
    tar += manifest._end(len(tar))
    return tar, manifest.Packed(listed, hashlib.sha256(tar).hexdigest(), len(tar))


TAR, PACKED = pack(FILES)
LIST = [(file.path, file.sha256) for file in PACKED.files]
ORIGIN = package.Origin("digits", "default", "uid-1", sources=[{"uri": "file:///data", "digest": "ab" * 32}])
SMALL = package.sign(PACKED, ORIGIN, SIGNER)
TOLD = {name: signature.verify_json(SMALL[name], IN_TOTO, KEYS)[0] for name in (MODEL_SIG, PROVENANCE)}
WANTED: dict[str, Any] = {"tar_sha256": None, "model": "digits", "environment": "default"}


@pytest.mark.parametrize("name", [MODEL_SIG, PROVENANCE])
def test_a_statement_by_the_trusted_key_is_about_this_model_or_is_refused(name: str) -> None:
    def signed(statement: dict[str, Any]) -> bytes:
        return signature.sign_json(statement, IN_TOTO, SIGNER)

    def read(data: bytes) -> None:
        held = package.check({**SMALL, name: data}, KEYS, **WANTED)
        assert (held.model, held.environment, held.tar_sha256) == ("digits", "default", PACKED.tar_sha256)
        assert held.root_digest == manifest.root_digest(PACKED.files)
        assert not manifest.list_faults([path for path, _ in held.files])

    fuzz(
        twisted(TOLD[name]).map(signed),
        lambda data: passes(lambda: signature.verify_json(data, IN_TOTO, KEYS)),
        read,
        500,
    )


def test_a_result_agrees_with_what_was_signed_or_is_refused() -> None:
    def read(data: bytes) -> None:
        package.check({**SMALL, RESULT: data}, KEYS, **WANTED)
        told = json.loads(data)
        assert (told["tar_sha256"], told["root_digest"]) == (PACKED.tar_sha256, manifest.root_digest(PACKED.files))

    inputs = twisted(json.loads(SMALL[RESULT])).flatmap(spelled)
    fuzz(inputs, lambda data: passes(lambda: signature.parse_json(data, 1 << 20)), read, 300)


POINTER = {
    **dict.fromkeys(("package", "run_id", "workflow", "promoted_at"), "x"),
    **{"model": "digits", "environment": "default", "serial": 3, "model_version": "1"},
    **{"tar_sha256": PACKED.tar_sha256, "root_digest": manifest.root_digest(PACKED.files)},
}


def test_a_pointer_by_the_trusted_key_is_one_or_is_refused() -> None:
    def signed(document: dict[str, Any]) -> bytes:
        return signature.sign_json(document, pointer.PAYLOAD_TYPE, SIGNER)

    def read(data: bytes) -> None:
        found = pointer.unseal(data, KEYS)
        assert found.serial >= 1
        assert len(bytes.fromhex(found.tar_sha256)) == 32

    def past(data: bytes) -> bool:
        return passes(lambda: signature.verify_json(data, pointer.PAYLOAD_TYPE, KEYS))

    fuzz(twisted(POINTER).map(signed), past, read, 400)


# --- archives -----------------------------------------------------------------------------------------------------

BLOCK = 512
HEADER_FIELDS = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "kind": (156, 1), "link": (157, 100)}


def checksummed(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Our tar with blocks doubled, dropped, exchanged or put in, fields of headers rewritten, bits flipped."""
    blocks = [TAR[at : at + BLOCK] for at in range(0, len(TAR), BLOCK)]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(blocks) - 1))
        match draw(st.sampled_from(["field", "flip", "double", "drop", "exchange", "put in", "cut"])):
            case "field":
                start, size = HEADER_FIELDS[draw(st.sampled_from(sorted(HEADER_FIELDS)))]
                new = draw(
                    st.sampled_from(
                        [b"../x", b"/etc/passwd", b"1", b"2", b"5", b"x", b"g", b"S", b"77777777777", b"-1"]
                    )
                )
                new = new[:size].ljust(size, b"\0")
                blocks[at] = checksummed(blocks[at][:start] + new + blocks[at][start + size :])
            case "flip" if blocks[at]:
                place = draw(st.integers(0, len(blocks[at]) - 1))
                blocks[at] = blocks[at][:place] + bytes([blocks[at][place] ^ 1]) + blocks[at][place + 1 :]
            case "double":
                blocks.insert(at, blocks[at])
            case "drop" if len(blocks) > 1:
                del blocks[at]
            case "exchange":
                other = draw(st.integers(0, len(blocks) - 1))
                blocks[at], blocks[other] = blocks[other], blocks[at]
            case "put in":
                path = draw(st.sampled_from(["../x", "MLmodel", "a" * 120, "\u00fc"]))
                blocks.insert(at, manifest._header(path, draw(st.sampled_from([0, 3, 700, 8**11 - 1])))[-BLOCK:])
            case _:
                blocks[at] = blocks[at][: draw(st.integers(0, BLOCK))]
    return b"".join(blocks)


def test_an_archive_is_ours_to_the_last_byte_or_is_refused_even_under_its_own_digest(tmp_path: Path) -> None:
    first = manifest._header("MLmodel", 12)

    def read(tar: bytes) -> None:
        digest, target = hashlib.sha256(tar).hexdigest(), tmp_path / "model"
        try:
            manifest.unpack(io.BytesIO(tar), LIST, digest, target)
        except Permanent:
            assert [*tmp_path.iterdir()] == []
            raise
        assert tar == TAR
        for path, data in FILES.items():
            assert (target / path).read_bytes() == data
            (target / path).unlink()
        (target / "data").rmdir()
        target.rmdir()

    fuzz(archives(), lambda tar: tar.startswith(first), read, 600)


# --- keys ---------------------------------------------------------------------------------------------------------

DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
SPKI, PKCS8 = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PrivateFormat.PKCS8
PLAIN = serialization.NoEncryption()
PRIVATE: list[Any] = [
    *(KEY, ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256K1())),
    *(rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()),
]


@st.composite
def damaged(draw: st.DrawFn, ders: list[bytes]) -> bytes:
    """A key with some bytes of its DER others, gone or more."""
    der = bytearray(draw(st.sampled_from([ders[0], ders[0], *ders])))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(der) - 1))
        match draw(st.sampled_from(["flip", "set", "cut", "more"])):
            case "flip":
                der[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                der[at] = draw(st.sampled_from([0, 1, 2, 3, 5, 6, 0x30, 0x80, 0x84, 0xFF]))
            case "cut":
                del der[at : at + draw(st.integers(1, 4))]
            case _:
                der[at:at] = draw(st.binary(min_size=1, max_size=40))
        if not der:
            break
    return bytes(der)


def framed(label: str) -> Callable[[bytes], bytes]:
    def frame(der: bytes) -> bytes:
        body = base64.encodebytes(der)
        return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (label.encode(), body, label.encode())

    return frame


def careless(pem: bytes) -> st.SearchStrategy[bytes]:
    """A PEM file as it is, and as an editor, a concatenation or a cut would leave it."""
    others = [
        b"\xef\xbb\xbf" + pem,
        pem + pem,
        pem[:-20],
        b"text\n" + pem,
        pem.replace(b"\n", b"\r\n"),
        b"\0" + pem,
        pem * 20,
    ]
    return st.one_of(st.just(pem), st.just(pem), st.sampled_from(others))


def test_a_public_key_is_p256_or_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.pub"
    ders = [key.public_key().public_bytes(DER, SPKI) for key in PRIVATE]
    label = "PUBLIC KEY"

    def read(pem: bytes) -> None:
        file.write_bytes(pem)
        for key in signature.load_keys(file).values():
            assert key.curve.name == "secp256r1"

    inputs = damaged(ders).map(framed(label)).flatmap(careless)
    fuzz(inputs, lambda pem: pem.count(b"-----BEGIN") == 1 and b"-----END PUBLIC KEY-----" in pem, read, 600)


def write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def test_a_private_key_signs_or_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    ders = [key.private_bytes(DER, PKCS8, PLAIN) for key in PRIVATE]

    def read(pem: bytes) -> None:
        write(file, pem)
        signature.sign_file("ab" * 32, keys.load(f"file://{file}"))

    inputs = damaged(ders).map(framed("PRIVATE KEY")).flatmap(careless)
    fuzz(inputs, lambda pem: pem.count(b"-----BEGIN") == 1 and b"-----END PRIVATE KEY-----" in pem, read, 600)


def cosign_document(n: int = 16) -> dict[str, Any]:
    """What cosign encrypts a key into, with less work for scrypt."""
    salt, nonce = b"s" * 32, b"n" * SecretBox.NONCE_SIZE
    box = SecretBox(hashlib.scrypt(b"password", salt=salt, n=n, r=8, p=1, dklen=32))
    sealed = box.encrypt(KEY.private_bytes(DER, PKCS8, PLAIN), nonce).ciphertext
    text = {name: base64.b64encode(data).decode() for name, data in (("s", salt), ("n", nonce), ("c", sealed))}
    return {
        "kdf": {"name": "scrypt", "params": {"N": n, "r": 8, "p": 1}, "salt": text["s"]},
        "cipher": {"name": "nacl/secretbox", "nonce": text["n"]},
        "ciphertext": text["c"],
    }


def test_a_cosign_key_file_signs_as_its_key_or_is_refused(tmp_path: Path) -> None:
    file, password = tmp_path / "cosign.key", tmp_path / "password"
    write(password, b"password")
    env = {"AEGIS_SIGNING_PASSWORD_FILE": str(password)}

    def inside(pem: bytes) -> bool:
        match = cosign_key._PEM.fullmatch(pem)
        return match is not None and passes(lambda: strict_json(base64.b64decode(match[2])))

    def read(pem: bytes) -> None:
        write(file, pem)
        assert keys.load(f"file://{file}", env).public_pem() == SIGNER.public_pem()

    inputs = (
        twisted(cosign_document(), 2).flatmap(spelled).map(framed("ENCRYPTED SIGSTORE PRIVATE KEY")).flatmap(careless)
    )
    fuzz(inputs, inside, read, 600)


# --- zips among a model's files, which are looked into for pickles ------------------------------------------------


def zipped(method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("a/weights", b"plain " * 200)
        archive.writestr("b", b"plain")
    return stream.getvalue()


ZIPS = [zipped(method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)]


def test_a_zip_is_looked_into_or_refused(tmp_path: Path) -> None:
    def read(data: bytes) -> None:
        (tmp_path / "weights.zip").write_bytes(data)
        manifest.pack(tmp_path, io.BytesIO())

    fuzz(damaged(ZIPS), lambda data: data.startswith(b"PK"), read, 1000)


# --- how much a refusal costs -------------------------------------------------------------------------------------

BIG = """
import json, resource, sys, time
from aegis import package, pointer, signature
from aegis.errors import Permanent

def filled(unit, limit):
    return b'{"a":[' + unit * ((limit - 20) // len(unit)) + b'1]}'

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

sizes = signature.MAX_BUNDLE
kinds = [filled(unit, sizes) for unit in (b"[],", b"{},", b'"",', b"1.5,", b'"\\\\ud800",')]
kinds += [b"[" * sizes, b'{"a":' * (sizes // 5), b'"' + b"x" * (sizes - 2) + b'"']
kinds += [b"-----BEGIN PUBLIC KEY-----" * (sizes // 26)]
base, slowest = most(), 0.0
for data in kinds:
    for name in package.SMALL:
        began = time.monotonic()
        try:
            package.check({name: data}, {}, tar_sha256=None, model=None, environment=None)
            raise SystemExit("accepted")
        except Permanent:
            slowest = max(slowest, time.monotonic() - began)
print(json.dumps({"seconds": slowest, "MB": (most() - base) // 1024}))
"""


def test_refusing_the_largest_files_of_any_kind_takes_seconds_and_little_memory(world: World) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BIG],
        env=process_env(world.env()),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cost = json.loads(done.stdout)
    assert cost["seconds"] < 5
    assert cost["MB"] < 100
