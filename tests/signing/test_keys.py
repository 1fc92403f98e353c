"""Keys in files: cosign's encrypted ones, made here by the format's description, and what is not such a file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nacl.secret
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis import signature
from aegis.errors import OK, SIGNING_DENIED, USAGE, Permanent
from aegis.manifest import root_digest, walk
from sign_model import cosign_key, keys
from sign_model.sign import main
from sign_model.verify import verify_directory
from tests.signing.world import World

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
PKCS8, PLAIN = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
DIGEST = hashlib.sha256(b"a model").digest()
PASSWORD = b"hunter2 & more"
KEY = ec.generate_private_key(ec.SECP256R1())

Json = dict[str, Any]


def sealed(plain: bytes, password: bytes = PASSWORD, n: int = 1 << 10, **more: int) -> Json:
    """What stands inside the PEM. A small N, or each test would take as long as cosign itself does."""
    params = {"N": n, "r": 8, "p": 1, **more}
    salt, nonce = os.urandom(32), os.urandom(24)
    key = hashlib.scrypt(password, salt=salt, n=n, r=params["r"], p=params["p"], dklen=32, maxmem=1 << 28)
    box = nacl.secret.SecretBox(key).encrypt(plain, nonce)
    return {
        "kdf": {"name": "scrypt", "params": params, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(box.ciphertext).decode(),
    }


def armoured(document: object, label: str = "SIGSTORE") -> bytes:
    text = base64.encodebytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    name = b"ENCRYPTED %s PRIVATE KEY" % label.encode()
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (name, text, name)


def der(key: Any = KEY) -> bytes:
    data: bytes = key.private_bytes(DER, PKCS8, PLAIN)
    return data


def private(path: Path, data: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(data)
    return path


def load(folder: Path, pem: bytes, password: bytes | None = PASSWORD) -> signature.Signer:
    env = {}
    if password is not None:
        env["AEGIS_SIGNING_PASSWORD_FILE"] = str(private(folder / "password", password))
    return keys.load(private(folder / "cosign.key", pem).as_uri(), env)


@pytest.mark.parametrize("label", ["SIGSTORE", "COSIGN"])
@pytest.mark.parametrize("n", [1 << 15, 1 << 16])
def test_a_cosign_key_file_signs(tmp_path: Path, label: str, n: int) -> None:
    signer = load(tmp_path, armoured(sealed(der(), n=n), label))
    assert signer.public_pem() == KEY.public_key().public_bytes(PEM, SPKI)
    signature.sign_file(DIGEST.hex(), signer)  # which verifies


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_password_s_line_end_is_not_part_of_it(tmp_path: Path, end: bytes) -> None:
    load(tmp_path, armoured(sealed(der())), PASSWORD + end)


def test_no_password_is_a_password_too(tmp_path: Path) -> None:
    load(tmp_path, armoured(sealed(der(), b"")), b"\n")


def test_the_step_signs_with_one_and_its_failure_tells_no_secret(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    model = world.make_model()
    key = private(world.root / "cosign.key", armoured(sealed(der())))
    password = private(world.root / "password", PASSWORD)
    (world.trusted_dir / "cosign.pub").write_bytes(KEY.public_key().public_bytes(PEM, SPKI))
    env = world.env(
        AEGIS_MODEL_DIR=str(model), AEGIS_DIGEST=root_digest(walk(model)), AEGIS_SIGNING_KEY=key.as_uri(),
        AEGIS_SIGNING_PASSWORD_FILE=str(password),
    )  # fmt: skip
    assert main(env) == OK
    assert verify_directory(world.folder(world.output("package")), world.trusted) == []
    password.write_bytes(b"hunter3 & more")
    assert main(env) == SIGNING_DENIED
    said = capsys.readouterr().err + world.output("failure")
    assert "not a cosign key file, or not of this password" in said
    assert "hunter" not in said
    assert main({**env, "AEGIS_SIGNING_PASSWORD_FILE": ""}) == USAGE
    assert "AEGIS_SIGNING_PASSWORD_FILE: missing, and file:///" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "content", "says"),
    [
        (0o604, PASSWORD, "AEGIS_SIGNING_PASSWORD_FILE: mode 0604 lets everyone in"),
        (0o600, b"x" * 1025, "AEGIS_SIGNING_PASSWORD_FILE: more than 1024 bytes"),
        (None, b"", "AEGIS_SIGNING_PASSWORD_FILE: No such file"),
    ],
)
def test_a_password_is_read_from_a_private_file_alone(
    tmp_path: Path, mode: int | None, content: bytes, says: str
) -> None:
    key = private(tmp_path / "cosign.key", armoured(sealed(der())))
    password = tmp_path / "password"
    if mode is not None:
        private(password, content).chmod(mode)
    with pytest.raises(Permanent, match=says) as caught:
        keys.load(key.as_uri(), {"AEGIS_SIGNING_PASSWORD_FILE": str(password)})
    assert caught.value.exit_code == SIGNING_DENIED


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)], ids=["P-384", "RSA"]
)
def test_a_key_of_another_kind_inside_is_refused(tmp_path: Path, key: Any) -> None:
    with pytest.raises(Permanent, match="not a P-256 key"):
        load(tmp_path, armoured(sealed(der(key))))


def put(path: str, value: object) -> Callable[[Json], object]:
    def change(document: Json) -> object:
        *parents, last = path.split(".")
        for name in parents:
            document = document[name]
        return document.pop(last) if value is None else document.update({last: value})

    return change


BROKEN = {
    "no kdf": put("kdf", None),
    "another kdf": put("kdf.name", "pbkdf2"),
    "another cipher": put("cipher.name", "aes"),
    "a field more": put("note", "x"),
    "a parameter more": put("kdf.params.q", 1),
    "no parameters": put("kdf.params", []),
    "N of text": put("kdf.params.N", "1024"),
    "N of true": put("kdf.params.N", True),
    "N with a fraction": put("kdf.params.N", 1024.0),
    "N of one": put("kdf.params.N", 1),
    "N that is no power of two": put("kdf.params.N", 1000),
    "N that takes a gigabyte": put("kdf.params.N", 1 << 20),
    "N without end": put("kdf.params.N", 1 << 200),
    "r that takes a gigabyte": put("kdf.params.r", 8 << 10),
    "r of nothing": put("kdf.params.r", 0),
    "p for an hour": put("kdf.params.p", 1 << 20),
    "p below nothing": put("kdf.params.p", -1),
    "another N": put("kdf.params.N", 2048),
    "a short salt": put("kdf.salt", "AAAA"),
    "a long salt": put("kdf.salt", "AAAA" * 30),
    "a salt that is no base64": put("kdf.salt", "?"),
    "a salt of numbers": put("kdf.salt", 5),
    "a short nonce": put("cipher.nonce", "AAAA"),
    "a short text": put("ciphertext", "AAAA"),
    "a long text": put("ciphertext", "AAAA" * 1100),
    "another text": put("ciphertext", base64.b64encode(bytes(200)).decode()),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_key_file_that_is_broken_or_asks_too_much_is_refused(
    tmp_path: Path, change: Callable[[Json], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = sealed(der())
    change(document)
    asked: list[int] = []
    scrypt = hashlib.scrypt

    def counting(*args: Any, **more: Any) -> bytes:
        asked.append(128 * more["n"] * more["r"] * more["p"])
        return scrypt(*args, **more)

    monkeypatch.setattr(hashlib, "scrypt", counting)
    with pytest.raises(Permanent, match="not a cosign key file, or not of this password") as caught:
        load(tmp_path, armoured(document))
    assert caught.value.exit_code == SIGNING_DENIED
    assert sum(asked) <= 2 << 20


@pytest.mark.parametrize(
    "pem",
    [
        armoured([]), armoured(b"x"), armoured(b'{"kdf": 1, "kdf": 2}'), armoured(b"[" * 3000),
        armoured(sealed(der())) * 2, b"key: " + armoured(sealed(der())),
        armoured(sealed(der())).replace(b"END", b"EMD"),
        armoured(sealed(der())).replace(b"-----END ENCRYPTED SIGSTORE", b"-----END ENCRYPTED COSIGN"),
        armoured(sealed(b"no PKCS#8")), armoured(sealed(b"")),
    ],
)  # fmt: skip
def test_what_only_looks_like_a_key_file_is_refused(tmp_path: Path, pem: bytes) -> None:
    with pytest.raises(Permanent, match="not a cosign key file") as caught:
        load(tmp_path, pem)
    assert caught.value.exit_code == SIGNING_DENIED


_VALUES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just([]) | st.just({})
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_key_file_raises_anything_but_a_value_error_or_takes_long(data: st.DataObject) -> None:
    document = json.loads(json.dumps(_SEALED))
    place = document
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[name], dict) and data.draw(st.booleans()):
            place = place[name]
        else:
            place[name] = data.draw(_VALUES)
            break
    pem = bytearray(armoured(document))
    if data.draw(st.booleans()):
        pem[data.draw(st.integers(0, len(pem) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = cosign_key.decrypt(bytes(pem), PASSWORD)
    except ValueError:
        return
    assert found == der()


_SEALED = sealed(der())
