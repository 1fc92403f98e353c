"""Attacks, one row each, and the check that stops it: with a mutated copy of that check in place the attack succeeds.

Where a row names several checks, each of them alone stops the attack, and only without all of them does it succeed.
What is merely malformed is in the tests of the module that reads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from aegis import manifest, package, pointer, signature, step, storage
from aegis.errors import BAD_DATA, OK, USAGE, VERIFICATION_FAILED, Permanent, Temporary
from aegis.package import MODEL_SIG, PROVENANCE, RESULT, SIGNER, SMALL, TAR, TAR_SIG, Origin, Package
from aegis.signature import IN_TOTO
from aegis.storage import Store
from sign_model import keys, verify
from sign_model import sign as signing
from sign_model.promote import PROMOTED, STALE, Promotion
from sign_model.registry import MlflowRegistry
from tests.signing.tampering import (
    ENVELOPE,
    Check,
    Flag,
    Tamper,
    accept,
    champion,
    flipped,
    follow,
    letter,
    listed,
    parameters,
    resigned,
    reworded,
    rewrite,
    seal,
)
from tests.signing.world import World, process_env

SIGNATURE = Check(
    signature, "_verify", "key.verify(signature, digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))", "pass"
)
TRUST = Check(
    signature,
    "_open",
    """\
    if material["publicKey"]["hint"] not in keys:
        raise Untrusted("signed by a key that is not trusted")
    return material["publicKey"]["hint"], document[kind]""",
    "    return next(iter(keys)), document[kind]",
)
PAYLOAD_TYPE = Check(signature, "verify_json", 'envelope["payloadType"] != payload_type', "False")
ONE_KEY = Check(package, "check", "len({key for key in hints.values() if key}) > 1", "False")
SIGNER_PUB = Check(package, "check", "_hint_of(data)", "hints[TAR_SIG]")
ARCHIVE = Check(package, "check", "tar_sha256 is not None and tar and tar != tar_sha256", "False")
SUBJECTS = Check(
    package, "check", '(found != _subjects(tar, external["model"], root) or name != external["model"])', "False"
)
WANTED = Check(package, "check", "wanted is not None and external[field] != wanted", "False")
TOLD = Check(package, "check", '(result.get("tar_sha256"), result.get("root_digest")) != (tar, root)', "False")
ROOT = Check(package, "fetch", "root_digest not in {None, package.root_digest}", "False")
STATEMENT = Check(
    package,
    "_read_model_statement",
    'statement != _model_statement(manifest.Packed(tuple(files), "", 0), manifest.root_digest(files), name)',
    "False",
)
ONE_SUBJECT = Check(
    package, "_read_model_statement", '(subject,) = statement["subject"]', 'subject = statement["subject"][0]'
)
SLSA = Check(
    package, "_read_provenance", 'statement["_type"] != _STATEMENT or statement["predicateType"] != _SLSA', "False"
)
HEADER = Check(manifest, "_compare", "blocks != _header(path, length)", "False")
CONTENT = Check(manifest, "_compare", "digest.hexdigest() != expected", "False")
PADDING = Check(manifest, "_compare", 'read(-length % 512).strip(b"\\0")', "read(-length % 512) is None")
END = Check(manifest, "_compare", "read(len(end)) != end", "read(len(end)) is None")
AFTER = Check(manifest, "_compare", "tar.read(1)", "False")
WHOLE = Check(manifest, "_check", "hexdigest() != tar_sha256", "False")
PLAIN = Check(manifest, "_name_fault", 'part in {"", ".", ".."}', "False")
SEEN = Check(
    manifest,
    "_name_fault",
    '"\\\\" in part or any(unicodedata.category(letter) in _HIDDEN for letter in part)',
    "False",
)
GIT = Check(manifest, "_name_fault", 'part.casefold().startswith(".git")', "False")
GIT_FOLDER = Check(manifest, "_list", 'entry.name.casefold().startswith(".git")', "False")
ORDER = Check(manifest, "list_faults", "[*paths] != sorted(set(paths), key=_order)", "False")
TWIN = Check(manifest, "list_faults", "twin != path", "False")
UNDER = Check(
    manifest,
    "list_faults",
    'any(unicodedata.normalize("NFC", parent).casefold() in seen for parent in parents)',
    "False",
)
CREATE = Check(manifest, "_output", "os.O_EXCL", "os.O_TRUNC")
STAT = Check(manifest, "_list", "follow_symlinks=False", "follow_symlinks=True")
REGULAR = Check(manifest, "_list", "not stat.S_ISREG(seen.st_mode)", "False")
LINKS = Check(manifest, "_list", "seen.st_nlink != 1", "False")
NOFOLLOW = Flag(os.O_NOFOLLOW)
UNCHANGED = Check(
    manifest,
    "_copy",
    "left or len({_identity(item.seen), _identity(before), _identity(os.fstat(descriptor))}) > 1",
    "False",
)
JUDGED = Check(signing, "sign", "digest is not None and root != digest", "False")
MINE = Check(pointer, "read", "(pointer.environment, pointer.model) != (environment, model)", "False")
OLDER = Check(verify, "verify_directory", "found.serial < min_serial", "False")
OLDER_SERVED = Check(verify, "_accepted", "serial < settings.min_serial", "False")
PICKLE_SIGNED = Check(manifest, "_read", "not faults and not allow_pickle", "False")
PICKLE_SERVED = Check(verify.Policy, "judge", "not self.allow_pickle", "False")
COMPARED = Check(storage.FileStore, "swap", "(found.version if found else None) != expected", "False")
USERINFO = Check(step, "redact", '_USERINFO.sub("://***@", text)', "text")
VARIABLES = Check(step, "redact", "_SECRET.search(name) and len(value) >= 6", "False")
UNEXPECTED = Check(signing, "run", 'f"unexpected {type(error).__name__} at {place}"', "str(error)")
DIGEST = Check(pointer, "unseal", "not SHA256.fullmatch(pointer.tar_sha256)", "False")
PATHS = Check(storage, "_plain", 'segment not in (".", "..")', "True")


Act = Callable[[World], object]


def exchange(resources: list[dict[str, str]]) -> None:
    one, two = resources[0], resources[1]
    one["digest"], two["digest"] = two["digest"], one["digest"]


def other_package(world: World, text: str = "weightz", **identity: str) -> Path:
    """A package of other bytes (as many), or of another model or environment, by the same key."""
    (world.root / "elsewhere").mkdir()
    elsewhere = World(world.root / "elsewhere", **identity)
    shutil.copytree(world.trusted_dir, elsewhere.trusted_dir, dirs_exist_ok=True)
    elsewhere.signer = world.signer
    signed = elsewhere.signed(elsewhere.make_model("model", text))
    return elsewhere.folder(signed.tar_sha256)


def swapped(*names: str, text: str = "weightz", **identity: str) -> Tamper:
    def tamper(world: World, folder: Path) -> None:
        other = other_package(world, text, **identity)
        for name in names:
            shutil.copy(other / name, folder / name)

    return tamper


def forged(*, claim: bool) -> Tamper:
    """A whole package of other bytes by a key that nobody trusts; `claim`: its bundles name the trusted key."""

    def tamper(world: World, folder: Path) -> None:
        mine, stranger = folder / SIGNER, keys.ensure(world.root / "stranger.pem")
        trusted = mine.read_bytes()
        with (folder / TAR).open("wb") as stream:
            packed = manifest.pack(world.make_model("evil", "evil"), stream)
        for name, data in package.sign(packed, world.origin(), stranger).items():
            document = data
            if claim and name in {MODEL_SIG, TAR_SIG, PROVENANCE}:
                bundle = json.loads(data)
                bundle["verificationMaterial"]["publicKey"]["hint"], *_ = world.trusted
                document = json.dumps(bundle).encode()
            (folder / name).write_bytes(document)
        mine.write_bytes(trusted)

    return tamper


def second_key(world: World, folder: Path) -> None:
    other = keys.ensure(world.root / "keys" / "second.pem", world.trusted_dir)
    (folder / TAR_SIG).write_bytes(signature.sign_file(folder.name, other))


def told_otherwise(_world: World, folder: Path) -> None:
    result = json.loads((folder / RESULT).read_bytes())
    (folder / RESULT).write_text(json.dumps({**result, "root_digest": "00" * 32}))


SIG = "sig"
EMPTY = hashlib.sha256(b"").hexdigest()
ADDED = listed(lambda resources: resources.append({**resources[0], "name": "zzz", "digest": EMPTY}))
RENAMED = listed(lambda resources: resources[0].update(name="MLmodeL"))

# What is done to a package, what stops it for who reads its folder, and what else does for who follows the pointer.
PACKAGES: dict[str, tuple[Tamper, list[Check], list[Check]]] = {
    # The first file, MLmodel, has 12 bytes: header to 512, content to 524, padding to 1024.
    "a byte of a file flipped in the tar": (flipped(TAR, 515), [CONTENT, WHOLE], []),
    "a byte of a header flipped": (flipped(TAR, 104), [HEADER, WHOLE], []),
    "a byte of the padding flipped": (flipped(TAR, 600), [PADDING, WHOLE], []),
    "a byte of the tar's end flipped": (flipped(TAR, -1), [END, WHOLE], []),
    "a byte more": (lambda _, folder: rewrite(folder / TAR, lambda data: data.append(0)), [AFTER], []),
    "a bit of model.sig's signature flipped": (letter(MODEL_SIG, ENVELOPE, "signatures", "0", SIG), [SIGNATURE], []),
    "a bit of the provenance's signature flipped": (
        letter(PROVENANCE, ENVELOPE, "signatures", "0", SIG), [SIGNATURE], [],
    ),
    "a bit of the tar's signature flipped": (letter(TAR_SIG, "messageSignature", "signature"), [SIGNATURE], []),
    "a word of the provenance changed": (
        reworded(PROVENANCE, lambda s: parameters(s).update(fingerprint="f00e")), [SIGNATURE], [],
    ),
    "a byte of signer.pub flipped": (flipped(SIGNER, 60), [SIGNER_PUB], []),
    "another key in signer.pub": (
        lambda world, folder: (folder / SIGNER).write_bytes(keys.ensure(world.root / "other.pem").public_pem()),
        [ONE_KEY], [],
    ),
    "another digest in result.json": (told_otherwise, [TOLD], []),
    "result.json of another build": (swapped(RESULT), [TOLD], []),
    "a file added to the list": (resigned(MODEL_SIG, ADDED), [SUBJECTS, TOLD, HEADER], [ROOT]),
    "a file added to the list, unsigned": (reworded(MODEL_SIG, ADDED), [SIGNATURE, SUBJECTS, TOLD, HEADER], [ROOT]),
    "a file removed from the list": (
        resigned(MODEL_SIG, listed(lambda resources: resources.pop())), [SUBJECTS, TOLD, END], [ROOT],
    ),
    "a file renamed in the list": (resigned(MODEL_SIG, RENAMED), [HEADER], []),  # digests alone make the root digest
    "a file renamed in the list, unsigned": (reworded(MODEL_SIG, RENAMED), [SIGNATURE, HEADER], []),
    "two files exchanged in the list": (resigned(MODEL_SIG, listed(exchange)), [SUBJECTS, TOLD, CONTENT], [ROOT]),
    "the tar of another build": (swapped(TAR), [CONTENT, WHOLE], []),
    "model.sig of another build": (swapped(MODEL_SIG), [SUBJECTS, TOLD, CONTENT], [ROOT]),
    "the tar's signature of another build": (swapped(TAR_SIG), [SUBJECTS, TOLD, WHOLE], [ARCHIVE]),
    "the provenance of another build": (swapped(PROVENANCE), [SUBJECTS], []),
    "a file swapped between models, with its list": (swapped(TAR, MODEL_SIG), [SUBJECTS, TOLD, WHOLE], [ROOT]),
    "the provenance of another model": (swapped(PROVENANCE, text="weights", model="letters"), [SUBJECTS, WANTED], []),
    "the provenance of another environment": (
        swapped(PROVENANCE, text="weights", environment="staging"), [WANTED], [],
    ),
    "model.sig of another model": (swapped(MODEL_SIG, text="weights", model="letters"), [SUBJECTS], []),
    "the package of another model": (swapped(TAR, *SMALL, text="weights", model="letters"), [WANTED], []),
    "the package of another environment": (
        swapped(TAR, *SMALL, text="weights", environment="staging"), [WANTED], [],
    ),
    "other bytes under the name of a trusted key": (forged(claim=True), [SIGNATURE], [ARCHIVE, ROOT]),
    "other bytes by an untrusted key": (forged(claim=False), [TRUST, SIGNATURE], [ARCHIVE, ROOT]),
    "one file by another trusted key": (second_key, [ONE_KEY], []),
    "a subject too many in model.sig": (
        resigned(MODEL_SIG, lambda s: s["subject"].append(s["subject"][0])), [ONE_SUBJECT, STATEMENT], [],
    ),
    "a subject too many in the provenance": (
        resigned(PROVENANCE, lambda s: s["subject"].append(s["subject"][0])), [SUBJECTS], [],
    ),
    "a subject too few in the provenance": (resigned(PROVENANCE, lambda s: s["subject"].pop()), [SUBJECTS], []),
    "another tar in the provenance": (
        resigned(PROVENANCE, lambda s: s["subject"][0]["digest"].update(sha256="00" * 32)), [SUBJECTS], [],
    ),
    "another root digest in the provenance": (
        resigned(PROVENANCE, lambda s: s["subject"][1]["digest"].update(sha256="00" * 32)), [SUBJECTS], [],
    ),
    "another model in the provenance": (
        resigned(PROVENANCE, lambda s: parameters(s).update(model="letters")), [SUBJECTS, WANTED], [],
    ),
    "another environment in the provenance": (
        resigned(PROVENANCE, lambda s: parameters(s).update(environment="staging")), [WANTED], [],
    ),
    "a provenance of another kind": (
        resigned(PROVENANCE, lambda s: s.update(predicateType="https://x/v1")), [SLSA], [],
    ),
    "files left out by model.sig's method": (
        resigned(MODEL_SIG, lambda s: s["predicate"]["serialization"].update(ignore_paths=["MLmodel"])),
        [STATEMENT], [],
    ),
    "links allowed by model.sig's method": (
        resigned(MODEL_SIG, lambda s: s["predicate"]["serialization"].update(allow_symlinks=True)), [STATEMENT], [],
    ),
    "another root digest in model.sig": (
        resigned(MODEL_SIG, lambda s: s["subject"][0]["digest"].update(sha256="00" * 32)),
        [STATEMENT, SUBJECTS, TOLD], [ROOT],
    ),
}  # fmt: skip


def in_folder(tamper: Tamper) -> Act:
    def act(world: World) -> None:
        folder = champion(world)
        tamper(world, folder)
        accept(world, folder, model="digits", environment="default")

    return act


def at_pointer(tamper: Tamper) -> Act:
    def act(world: World) -> None:
        tamper(world, champion(world))
        follow(world)

    return act


# --- pointers -----------------------------------------------------------------------------------------------------


def moved(place: str) -> Tamper:
    """The package lies elsewhere, and the pointer, signed, says so."""

    def tamper(world: World, folder: Path) -> None:
        (folder.parent / place).parent.mkdir(exist_ok=True)
        folder.rename(folder.parent / place)
        seal(world, tar_sha256=place)

    return tamper


def as_statement(world: World, _folder: Path) -> None:
    """The pointer's words, signed as what an in-toto statement is signed as."""
    document = asdict(world.pointer() or pytest.fail("no pointer"))
    world.pointer_file().write_bytes(signature.sign_json(document, IN_TOTO, world.signer))


def pointer_bit(world: World, _folder: Path) -> None:
    letter("pointer.json", ENVELOPE, "signatures", "0", SIG)(world, world.pointer_file().parent)


def old_pointer(world: World) -> tuple[Path, bytes]:
    """The pointer has moved on; the folder and the pointer of before."""
    folder = champion(world)
    before = world.pointer_file().read_bytes()
    champion(world, "better")
    seal(world, serial=2)
    return folder, before


def older(world: World) -> None:
    folder, before = old_pointer(world)
    world.pointer_file().write_bytes(before)
    accept(world, folder, pointer_file=world.pointer_file(), min_serial=2)


def older_served(world: World) -> None:
    _, before = old_pointer(world)
    world.pointer_file().write_bytes(before)
    target = {"AEGIS_TARGET": str(world.root / "out" / "champion"), "AEGIS_MIN_SERIAL": "2"}
    verify._body({**world.env(), **target})


POINTERS: dict[str, tuple[Tamper, list[Check]]] = {
    "a bit of its signature flipped": (pointer_bit, [SIGNATURE]),
    "another model in it": (lambda world, _: seal(world, model="letters"), [MINE]),
    "another environment in it": (lambda world, _: seal(world, environment="staging"), [MINE]),
    "another root digest in it": (lambda world, _: seal(world, root_digest="00" * 32), [ROOT]),
    "a package under another's digest": (moved("00" * 32), [ARCHIVE]),
    "a path as its digest": (moved("../x"), [DIGEST, PATHS, ARCHIVE]),
    "a statement in its place": (as_statement, [PAYLOAD_TYPE, SIGNATURE]),
    "the package of another build in its folder": (swapped(TAR, *SMALL), [ARCHIVE, ROOT]),
}


# --- archives: whoever made one knows its digest ------------------------------------------------------------------


def unpacking(tar: bytes, *files: tuple[str, bytes]) -> Act:
    """Unpack a tar against a signed list of these files, under the tar's own digest."""
    wanted = [(path, hashlib.sha256(content).hexdigest()) for path, content in files]

    def act(world: World) -> None:
        manifest.unpack(io.BytesIO(tar), wanted, hashlib.sha256(tar).hexdigest(), world.root / "out" / "unpacked")

    return act


def hostile(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """A tar by tarfile: (name, content, type, link) each."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content, kind, link in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, link
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def ours(*members: tuple[str, bytes]) -> bytes:
    """A tar laid out as ours, with names that ours would not have."""
    tar = b"".join(
        manifest._header(path, len(content)) + content + b"\0" * (-len(content) % 512) for path, content in members
    )
    return tar + manifest._end(len(tar))


def altered(change: Callable[[bytearray], object]) -> bytes:
    tar = bytearray(ours(("a", b"one")))
    change(tar)
    return bytes(tar)


def escaping(world: World) -> None:
    """Whatever lies outside was written there by the attack."""
    outside = world.root / "out" / "escaped"
    files = [("../escaped", hashlib.sha256(b"one").hexdigest())]
    tar = ours(("../escaped", b"one"))
    manifest.unpack(io.BytesIO(tar), files, hashlib.sha256(tar).hexdigest(), world.root / "out" / "unpacked")
    assert outside.read_bytes() == b"one"


def absolute(world: World) -> None:
    outside = world.root / "out" / "escaped"
    files = [(str(outside), hashlib.sha256(b"one").hexdigest())]
    tar = ours((str(outside), b"one"))
    manifest.unpack(io.BytesIO(tar), files, hashlib.sha256(tar).hexdigest(), world.root / "out" / "unpacked")
    assert outside.read_bytes() == b"one"


PAX, ONE = tarfile.XHDTYPE, ("a", b"one", tarfile.REGTYPE, "")
RECORD, SIZE, SPARSE = b"16 path=../evil\n", b"10 size=9\n", b"26 GNU.sparse.realsize=99\n"
ARCHIVES: dict[str, tuple[Act, list[Check]]] = {
    "a symbolic link": (unpacking(hostile(("a", b"", tarfile.SYMTYPE, "/etc/passwd")), ("a", b"")), [HEADER]),
    "a hard link": (unpacking(hostile(("a", b"", tarfile.LNKTYPE, "/etc/passwd")), ("a", b"")), [HEADER]),
    "a character device": (unpacking(hostile(("a", b"", tarfile.CHRTYPE, "")), ("a", b"")), [HEADER]),
    "a block device": (unpacking(hostile(("a", b"", tarfile.BLKTYPE, "")), ("a", b"")), [HEADER]),
    "a FIFO": (unpacking(hostile(("a", b"", tarfile.FIFOTYPE, "")), ("a", b"")), [HEADER]),
    "a folder": (unpacking(hostile(("a", b"", tarfile.DIRTYPE, "")), ("a", b"")), [HEADER]),
    "a traversal": (unpacking(ours(("../a", b"one")), ("a", b"one")), [HEADER]),
    "an absolute name": (unpacking(ours(("/a", b"one")), ("a", b"one")), [HEADER]),
    "another name": (unpacking(ours(("b", b"one")), ("a", b"one")), [HEADER]),
    "a twin's name": (unpacking(ours(("A", b"one")), ("a", b"one")), [HEADER]),
    "a GNU sparse file": (unpacking(hostile(("a", b"one", tarfile.GNUTYPE_SPARSE, "")), ("a", b"one")), [HEADER]),
    "a long-name record": (
        unpacking(hostile(("././@LongLink", b"a\0", tarfile.GNUTYPE_LONGNAME, ""), ONE), ("a", b"a\0")), [HEADER, END],
    ),
    "a PAX record with another path": (unpacking(hostile(("a", RECORD, PAX, ""), ONE), ("a", RECORD)), [HEADER, END]),
    "a PAX record with another size": (unpacking(hostile(("a", SIZE, PAX, ""), ONE), ("a", SIZE)), [HEADER, END]),
    "a PAX record of a sparse file": (unpacking(hostile(("a", SPARSE, PAX, ""), ONE), ("a", SPARSE)), [HEADER, END]),
    "a PAX record for all that follows": (
        unpacking(hostile(("a", RECORD, tarfile.XGLTYPE, ""), ONE), ("a", RECORD)), [HEADER, END],
    ),
    "a member twice": (unpacking(ours(("a", b"one"), ("a", b"one")), ("a", b"one")), [END]),
    "a member more": (unpacking(ours(("a", b"one"), ("b", b"two")), ("a", b"one")), [END]),
    "a second archive after the end": (unpacking(ours(("a", b"one")) * 2, ("a", b"one")), [AFTER, WHOLE]),
    "another byte of the file": (unpacking(altered(lambda tar: tar.__setitem__(512, 1)), ("a", b"one")), [CONTENT]),
    "a byte in the padding": (unpacking(altered(lambda tar: tar.__setitem__(600, 1)), ("a", b"one")), [PADDING]),
    "a byte in the end": (unpacking(altered(lambda tar: tar.__setitem__(2000, 1)), ("a", b"one")), [END]),
    "a byte after the end": (unpacking(altered(lambda tar: tar.append(0)), ("a", b"one")), [AFTER, WHOLE]),
    "another mode": (unpacking(altered(lambda tar: tar.__setitem__(104, ord("7"))), ("a", b"one")), [HEADER]),
    "a traversal in the signed list": (escaping, [PLAIN]),
    "an absolute path in the signed list": (absolute, [PLAIN]),
    "a path twice in the signed list": (
        unpacking(ours(("a", b"one"), ("a", b"two")), ("a", b"one"), ("a", b"two")), [ORDER, CREATE],
    ),
    "twins by their case in the signed list": (
        unpacking(ours(("A", b"one"), ("a", b"two")), ("A", b"one"), ("a", b"two")), [TWIN],
    ),
    "twins by their Unicode in the signed list": (
        unpacking(ours(("e\u0301", b"one"), ("\u00e9", b"two")), ("e\u0301", b"one"), ("\u00e9", b"two")), [TWIN],
    ),
    "a file below another's twin in the signed list": (
        unpacking(ours(("A", b"one"), ("a/b", b"two")), ("A", b"one"), ("a/b", b"two")), [UNDER],
    ),
    "a .git file in the signed list": (unpacking(ours((".git/x", b"one")), (".git/x", b"one")), [GIT]),
    "a name that reads backwards in the signed list": (
        unpacking(ours(("\u202etxt.exe", b"one")), ("\u202etxt.exe", b"one")), [SEEN],
    ),
    "a backslash in the signed list": (unpacking(ours(("..\\a", b"one")), ("..\\a", b"one")), [SEEN]),
}  # fmt: skip


# --- models, before they are signed -------------------------------------------------------------------------------


def packing(spoil: Callable[[World, Path], object]) -> Act:
    """Pack a model that somebody spoilt: what must not leave ends in a signed tar."""

    def act(world: World) -> None:
        model = world.make_model()
        (world.root / "secret").write_text("hunter2")
        spoil(world, model)
        manifest.pack(model, io.BytesIO())

    return act


def names(*paths: str) -> Callable[[World, Path], object]:
    def spoil(_world: World, model: Path) -> None:
        for path in paths:
            (model / path).parent.mkdir(exist_ok=True)
            (model / path).touch()

    return spoil


def leaking(spoil: Callable[[World, Path], object]) -> Act:
    """As `packing`, and the secret is in the tar."""

    def act(world: World) -> None:
        model, tar = world.make_model(), io.BytesIO()
        (world.root / "secret").mkdir()
        (world.root / "secret" / "weights.bin").write_text("hunter2")
        spoil(world, model)
        manifest.pack(model, tar)
        assert b"hunter2" in tar.getvalue()

    return act


class Meanwhile(io.BytesIO):
    """What the archive is written to; as its first block comes, somebody changes the model."""

    def __init__(self, change: Callable[[], object]) -> None:
        super().__init__()
        self.change = change

    def write(self, block: object) -> int:
        if self.tell() == 0:
            self.change()
        return super().write(block)  # type: ignore[arg-type]  # a buffer, as BytesIO takes them


def while_packing(change: Callable[[World, Path], object]) -> Act:
    def act(world: World) -> None:
        model = world.make_model()
        (world.root / "secret").mkdir()
        (world.root / "secret" / "weights.bin").write_text("hunter2" * 100)
        tar = Meanwhile(lambda: change(world, model))
        manifest.pack(model, tar)
        if (model / "data").is_symlink():
            assert b"hunter2" in tar.getvalue()

    return act


def swap_directory(world: World, model: Path) -> None:
    (model / "data").rename(world.root / "away")
    (model / "data").symlink_to(world.root / "secret")


def swap_file(world: World, model: Path) -> None:
    (model / "data" / "weights.bin").unlink()
    (model / "data" / "weights.bin").symlink_to(world.root / "secret" / "weights.bin")


def device(world: World) -> None:
    """0:0 is the one device that anybody may make. No driver stands behind it, so an attempt to open it is the end."""
    model = world.make_model()
    os.mknod(model / "null", 0o20600, os.makedev(0, 0))
    try:
        manifest.pack(model, io.BytesIO())
    except Permanent as error:
        if "null: cannot be opened" not in str(error):
            raise


def as_step(world: World, model: Path, origin: Origin, digest: str | None) -> Package:
    """Sign as the step does; looked up anew, so that a mutated copy is what signs."""
    given: dict[str, Any] = {"store": world.store, "signer": world.signer, "trusted": world.trusted}
    return signing.sign(model, origin, digest, scratch=world.scratch, **given)


def linked_model(world: World) -> None:
    (world.root / "linked").symlink_to(world.make_model())
    manifest.pack(world.root / "linked", io.BytesIO())


def replaced(world: World) -> None:
    """The artifact is another one when it is signed than when it was judged."""
    model = world.make_model()
    judged = manifest.root_digest(manifest.walk(model))
    (model / "MLmodel").write_text("flavors: {evil: {}}\n")
    as_step(world, model, world.origin(), judged)


def hidden_pickle(_world: World, model: Path) -> None:
    (model / "data.txt").write_bytes(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94K\x01a.")


def served_pickle(world: World) -> None:
    """The signer was allowed to sign a pickle; the reader never allowed it."""
    model = world.make_model()
    hidden_pickle(world, model)
    signed = as_step(world, model, replace(world.origin(), allow_pickle=True), None)
    accept(world, world.folder(signed.tar_sha256))


MODELS: dict[str, tuple[Act, list[Check]]] = {
    "a symbolic link to a file": (
        leaking(lambda world, model: (model / "link").symlink_to(world.root / "secret" / "weights.bin")),
        [STAT, NOFOLLOW],
    ),
    "a symbolic link to a folder": (
        leaking(lambda world, model: (model / "link").symlink_to(world.root / "secret")), [STAT, NOFOLLOW],
    ),
    "a hard link to what lies outside": (
        leaking(lambda world, model: os.link(world.root / "secret" / "weights.bin", model / "link")), [LINKS],
    ),
    "a FIFO": (packing(lambda _, model: os.mkfifo(model / "pipe")), [REGULAR]),
    "a device": (device, [REGULAR]),
    "a model that is itself a link": (linked_model, [NOFOLLOW]),
    "a .git folder": (packing(names(".git/hooks")), [GIT_FOLDER, GIT]),
    "a .gitattributes file": (packing(names(".gitattributes")), [GIT]),
    "twins by their case": (packing(names("mlMODEL")), [TWIN]),
    "twins by their Unicode": (packing(names("e\u0301", "\u00e9")), [TWIN]),
    "a line end in a name": (packing(names("new\nline")), [SEEN]),
    "a name that reads backwards": (packing(names("\u202etxt.exe")), [SEEN]),
    "a pickle under a harmless name": (packing(hidden_pickle), [PICKLE_SIGNED]),
    "a pickle that the signer was allowed": (served_pickle, [PICKLE_SERVED]),
    "a file that grows while it is packed": (
        while_packing(lambda _, model: rewrite(model / "MLmodel", lambda data: data.append(0))), [UNCHANGED],
    ),
    "a file that shrinks while it is packed": (
        while_packing(lambda _, model: (model / "MLmodel").write_text("evil")), [UNCHANGED],
    ),
    "a hard link made while it is packed": (
        while_packing(lambda world, model: os.link(model / "MLmodel", world.root / "later")), [UNCHANGED],
    ),
    "a directory swapped for a link while packing": (while_packing(swap_directory), [NOFOLLOW, UNCHANGED]),
    "a file swapped for a link while packing": (while_packing(swap_file), [NOFOLLOW, UNCHANGED]),
    "an artifact replaced between gate and sign": (replaced, [JUDGED]),
}  # fmt: skip

ATTACKS: dict[str, tuple[Act, list[Check]]] = {
    **{f"package, by its folder: {name}": (in_folder(act), checks) for name, (act, checks, _) in PACKAGES.items()},
    **{f"package, by the pointer: {name}": (at_pointer(act), [*a, *b]) for name, (act, a, b) in PACKAGES.items()},
    **{f"pointer: {name}": (at_pointer(act), checks) for name, (act, checks) in POINTERS.items()},
    "pointer: an older serial": (older, [OLDER]),
    "pointer: an older serial, served": (older_served, [OLDER_SERVED]),
    **{f"archive: {name}": row for name, row in ARCHIVES.items()},
    **{f"model: {name}": row for name, row in MODELS.items()},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_and_leaves_nothing(attack: str, world: World) -> None:
    act, _ = ATTACKS[attack]
    with pytest.raises(Permanent) as caught:
        act(world)
    signing_refused = attack.startswith("model: ") and "signer was allowed" not in attack and "gate" not in attack
    assert caught.value.exit_code == (BAD_DATA if signing_refused else VERIFICATION_FAILED)
    assert [*(world.root / "out").iterdir(), *world.scratch.iterdir()] == []
    assert not (world.root / "accepted").exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_its_check_the_attack_succeeds(attack: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    act, checks = ATTACKS[attack]
    for check in checks:
        check.remove(monkeypatch)
    act(world)


LAYERED = [(name, kept) for name, (_, checks) in ATTACKS.items() if len(checks) > 1 for kept in range(len(checks))]


@pytest.mark.parametrize(("attack", "kept"), LAYERED)
def test_where_several_checks_stop_an_attack_each_alone_does(
    attack: str, kept: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, checks = ATTACKS[attack]
    for check in checks[:kept] + checks[kept + 1 :]:
        check.remove(monkeypatch)
    with pytest.raises((Permanent, Temporary)):
        act(world)
    assert not (world.root / "accepted").exists()


# --- eight at once ------------------------------------------------------------------------------------------------


class Together:
    """A store that lets nobody swap before everybody has looked, and counts who did."""

    def __init__(self, store: Store, barrier: threading.Barrier) -> None:
        self._store, self._barrier, self.swaps = store, barrier, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def swap(self, path: str, data: bytes, expected: str | None) -> str:
        self._barrier.wait(60)
        version = self._store.swap(path, data, expected)
        self.swaps += 1
        return version


def eight_promotions(world: World, server: str) -> tuple[list[str], dict[int, Promotion], int]:
    """The packages, how the promotion of each ended, all at once on a real server, and how often the pointer moved."""
    registry, barrier = MlflowRegistry(server), threading.Barrier(8)
    tars = [world.signed(world.make_model(f"m{n}", f"w{n}"), f"uid-{n}").tar_sha256 for n in range(8)]
    stores = [Together(world.store, barrier) for _ in tars]
    done: dict[int, Promotion] = {}

    def promote(number: int) -> None:
        store: Any = stores[number]
        with suppress(Temporary):  # the pointer moved on while the alias followed: only where it may move twice
            done[number] = world.promoted(tars[number], registry, uid=f"uid-{number}", store=store)

    threads = [threading.Thread(target=promote, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return tars, done, sum(store.swaps for store in stores)


def test_of_eight_promotions_at_once_on_a_real_server_exactly_one_wins(world: World, server: str) -> None:
    world.model = "eight"
    tars, done, swaps = eight_promotions(world, server)
    assert swaps == 1
    assert sorted(promotion.outcome for promotion in done.values()) == [STALE] * 7 + [PROMOTED]
    (winner,) = [number for number, promotion in done.items() if promotion.outcome == PROMOTED]
    made = world.pointer()
    assert made is not None
    assert (made.tar_sha256, made.serial) == (tars[winner], 1)
    client = MlflowClient(server)
    alias = client.get_model_version_by_alias(world.model, "champion").version
    assert str(alias) == done[winner].version == made.model_version
    found = client.search_model_versions(f"name = '{world.model}'")
    assert len([version for version in found if version.tags.get("aegis.outcome") == STALE]) == 7


def test_without_compare_and_set_the_pointer_would_move_more_than_once(
    world: World, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model = "eight-unchecked"
    COMPARED.remove(monkeypatch)
    assert eight_promotions(world, server)[2] > 1


# --- secrets ------------------------------------------------------------------------------------------------------


def fails(*_: object, **__: object) -> None:
    raise RuntimeError("hunter2-hunter2")


SECRETS: dict[str, tuple[dict[str, str], Check]] = {
    "a password in a URI": ({"AEGIS_MODELS_URI": "ftp://user:hunter2@host/x"}, USERINFO),
    "a variable's secret in a URI": (
        {"AEGIS_MODELS_URI": "ftp://host/hunter2-aws", "AWS_SECRET_ACCESS_KEY": "hunter2-aws"},
        VARIABLES,
    ),
    "the text of an error that nobody expected": ({}, UNEXPECTED),
}


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize("what", SECRETS)
def test_a_secret_is_told_only_without_its_check(
    what: str, without: bool, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, check = SECRETS[what]
    model = world.make_model()
    digest = manifest.root_digest(manifest.walk(model))
    if not settings:
        monkeypatch.setattr(manifest, "pack", fails)
    if without:
        check.remove(monkeypatch)
    assert signing.main(world.env(AEGIS_MODEL_DIR=str(model), AEGIS_DIGEST=digest, **settings)) != OK
    said = "".join(capsys.readouterr()) + world.output("failure") + world.output("explanation")
    assert ("hunter2" in said) is without


# Runs a step's module and writes down every process that it starts.
WATCHED = """
import os, runpy, sys
log = open(os.environ.pop("WATCHED"), "w")
def hook(event, args):
    if event in {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "os.forkpty"}:
        print(event, args, file=log, flush=True)
sys.addaudithook(hook)
print(sys.orig_argv, file=log, flush=True)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


UNAME = "subprocess.Popen ('uname', ['uname', '-p'], None, None)"
"""What Python's own platform module runs when MLflow names itself to a server: the one child, and of the system."""


def test_no_secret_is_in_any_output_argument_child_or_result(world: World, server: str) -> None:
    world.model = "secrets"
    model = world.make_model()
    digest = manifest.root_digest(manifest.walk(model))
    secrets = {"AWS_SECRET_ACCESS_KEY": "hunter2-aws-secret", "MLFLOW_TRACKING_PASSWORD": "hunter2-mlflow"}
    settings = {"AEGIS_MODEL_DIR": str(model), "AEGIS_DIGEST": digest, "MLFLOW_TRACKING_URI": server}
    settings |= {"MLFLOW_TRACKING_USERNAME": "aegis", **secrets}
    told: dict[str, str] = {}

    def run(name: str, expected: int, **more: str) -> None:
        log = world.root / f"{len(told)}.log"
        env = process_env(world.env(**{**settings, **more, "WATCHED": str(log)}))
        command = [sys.executable, "-c", WATCHED, f"sign_model.{name}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == expected, done.stderr
        _, *started = log.read_text().splitlines()
        assert set(started) <= {UNAME}
        told[f"{name} {len(told)}"] = done.stdout + done.stderr + log.read_text()

    run("sign", OK)
    promotion = {"AEGIS_PACKAGE": world.output("package"), "AEGIS_CHAMPION": ""}
    run("promote", OK, **promotion)
    run("sign", BAD_DATA, AEGIS_MODELS_URI="ftp://user:hunter2-aws-secret@host/x")
    nowhere = server.replace("http://", "http://aegis:hunter2-mlflow@") + "/nowhere"
    run("promote", USAGE, **promotion, MLFLOW_TRACKING_URI=nowhere)
    for folder in ("models", "out", "scratch"):
        told |= {
            str(path): path.read_bytes().decode("latin-1")
            for path in (world.root / folder).rglob("*")
            if path.is_file()
        }
    found = MlflowClient(server).search_model_versions(f"name = '{world.model}'")
    told["registry"] = repr([(version.tags, version.description, version.source) for version in found])
    key = (world.root / "keys" / "signing.pem").read_text().splitlines()[1]
    assert [where for where, text in told.items() if "hunter2" in text or key in text] == []
