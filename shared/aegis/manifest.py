"""A model's bytes: which files it has, their digests, and the one deterministic tar that carries them.

Nothing here signs or trusts. The root digest is the subject digest of the stock `model_signing` tool with
`method=files, hash_type=sha256`: sha256 over the files' raw sha256 digests in path order. The tar's layout
follows from the files' paths and sizes alone, so a reader checks it byte by byte; all it parses is a size.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aegis.errors import VERIFICATION_FAILED, Permanent, Temporary

MAX_FILES = 10_000
"""A model of more files is a data set by mistake; model.sig holds every name and is read whole."""
MAX_FILE_SIZE = 8**11 - 1
"""8 GiB less a byte: the largest size in a tar header's octal field. Larger weights come in shards."""
MAX_DEPTH = 32
_CHUNK = 1 << 20
_BEHIND = 8
"""Blocks that wait to be hashed: 8 MiB at most."""
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_RECORD = 10_240  # what tar pads an archive to

PICKLES = frozenset({".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".pt", ".pth", ".ckpt"})
"""Suffixes whose usual loaders run code that the file carries. `.bin` is not among them: XGBoost, GGUF and
ONNX use it for plain data, so such a file is judged by its content, as every file is."""
_PICKLE_MAGIC = re.compile(rb"\x80[\x02-\x05][\x28-\x97]")  # PROTO 2-5 and an opcode after it
_BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, NotImplementedError, RuntimeError),
    *(EOFError, OSError, ValueError, MemoryError),
)
"""What comes of a damaged zip: zipfile lets the errors of its decoders through."""
_NPY_OBJECTS = re.compile(rb"\x93NUMPY[\s\S]{4,6}\{[^}]*'descr': [^}]*\|O")  # numpy pickles arrays of objects


@dataclass(frozen=True, slots=True)
class File:
    """One file of a model: relative posix path, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Packed:
    """What `pack` wrote: the model's files in order, and the tar's sha256 in hex and size in bytes."""

    files: tuple[File, ...]
    tar_sha256: str
    tar_size: int


def root_digest(files: Iterable[File]) -> str:
    """The model's digest in hex: sha256 over the files' raw digests in path order (not the order given)."""
    ordered = sorted(files, key=lambda file: _order(file.path))
    return hashlib.sha256(b"".join(bytes.fromhex(file.sha256) for file in ordered)).hexdigest()


def walk(directory: Path, *, allow_pickle: bool = True) -> list[File]:
    """Every file of a model directory, in path order, hashed. `Permanent` (65) names all that is unsafe.

    Pickles pass here: whoever signs asks for `allow_pickle=False`, whoever only wants a digest need not.
    """
    return list(_read(directory, lambda _block: None, allow_pickle))


def pack(directory: Path, target: BinaryIO, *, allow_pickle: bool = False) -> Packed:
    """Write the directory as a tar, hashing archive and files in the same single read."""
    size = 0
    with _beside() as (update, hexdigest):

        def write(block: bytes) -> None:
            nonlocal size
            update(block)
            size += len(block)
            target.write(block)

        files = tuple(_read(directory, write, allow_pickle))
        write(_end(size))
        return Packed(files, hexdigest(), size)


def unpack(
    tar: BinaryIO,
    files: Sequence[tuple[str, str]],
    tar_sha256: str,
    target: Path | None,
    judge: Callable[[Path], None] = lambda _: None,
) -> None:
    """Check a tar against its signed (path, sha256) list and digest; only then write it to `target`.

    The files appear at `target` (absent or empty before) by one rename, so a refusal leaves nothing behind;
    without a target it is only checked. `Permanent` (76) otherwise. `judge` sees the checked files where they were
    unpacked, before the rename, and refuses them by what it raises.
    """
    if faults := list_faults([path for path, _ in files]):
        raise Permanent("the signed list of files is unsafe", faults, exit_code=VERIFICATION_FAILED)
    if target is None:
        return _check(tar, files, tar_sha256, None)
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise Permanent(f"{target} is not an empty directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        _check(tar, files, tar_sha256, scratch)
        judge(scratch)
        scratch.chmod(0o755)
        scratch.rename(target)
    except OSError as error:
        raise Temporary(f"cannot write the model to {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return None


def pickles(directory: Path) -> dict[str, str]:
    """The files of a model directory that may run code when they are loaded, and what gives each away."""
    with _opened(os.fspath(directory), os.O_DIRECTORY, None) as root:
        found = sorted(_list(root, "", {}), key=lambda item: _order(item.path))
        return {item.path: fault for item in found if (fault := _code_fault(root, item))}


def list_faults(paths: Sequence[str]) -> dict[str, str]:
    """What is wrong with a model's list of paths: unsafe names, twins, disorder, files under files."""
    faults = {path: fault for path in paths if (fault := _name_fault(path))}
    if not 0 < len(paths) <= MAX_FILES:
        faults["files"] = f"{len(paths)}, must be 1 to {MAX_FILES}"
        return faults
    if [*paths] != sorted(set(paths), key=_order):
        faults["order"] = "not in path order, or a path twice"
    plain = [path for path in paths if path not in faults]
    seen: dict[str, str] = {}
    for path in plain:
        # Two names that one file system takes for the same file: the second would overwrite the first.
        twin = seen.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if twin != path:
            faults[path] = f"looks the same as {twin!r} on some file systems"
    for path in plain:
        parents = (path[:end] for end, letter in enumerate(path) if letter == "/")
        if any(unicodedata.normalize("NFC", parent).casefold() in seen for parent in parents):
            faults[path] = "lies under a file"
    return faults


def _order(path: str) -> list[str]:
    return path.split("/")  # as model_signing sorts: by components, so "a/b" comes before "a.txt"


def _name_fault(path: str) -> str | None:
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        return f"deeper than {MAX_DEPTH} directories"
    for part in parts:
        if part in {"", ".", ".."}:
            return "not a plain relative path"
        # Controls, invisible and direction-changing characters, bytes that are not UTF-8, line separators.
        if "\\" in part or any(unicodedata.category(letter) in _HIDDEN for letter in part):
            return "has control, invisible or undecodable characters, or a backslash"
        if part.casefold().startswith(".git"):
            return "a .git* name: stock verifiers skip those, so it could change unnoticed"
        if len(part.encode()) > 255:
            return "a name of more than 255 bytes"
    return None


@dataclass(frozen=True, slots=True)
class _Found:
    path: str
    seen: os.stat_result


def _read(directory: Path, write: Callable[[bytes], None], allow_pickle: bool) -> Iterator[File]:
    """List first and refuse with every fault at once; then read each file once, writing the tar's blocks."""
    with _opened(os.fspath(directory), os.O_DIRECTORY, None) as root:
        faults: dict[str, str] = {}
        found = sorted(_list(root, "", faults), key=lambda item: _order(item.path))
        faults = list_faults([item.path for item in found]) | faults
        if not faults and not allow_pickle:
            faults = {item.path: fault for item in found if (fault := _code_fault(root, item))}
        if faults:
            raise Permanent("unsafe model", {repr(path)[1:-1]: what for path, what in faults.items()})
        for item in found:
            yield _copy(root, item, write)


def _list(descriptor: int, prefix: str, faults: dict[str, str]) -> list[_Found]:
    found: list[_Found] = []
    with os.scandir(descriptor) as entries:
        for entry in entries:
            path = prefix + entry.name
            seen = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(seen.st_mode):
                if path.count("/") >= MAX_DEPTH - 1:
                    faults[path] = f"deeper than {MAX_DEPTH} directories"
                    continue
                if entry.name.casefold().startswith(".git"):
                    faults[path] = _name_fault(path) or ""
                    continue
                with _opened(entry.name, os.O_DIRECTORY, descriptor) as inner:
                    found += _list(inner, path + "/", faults)
            elif not stat.S_ISREG(seen.st_mode):
                faults[path] = "a symbolic link" if stat.S_ISLNK(seen.st_mode) else "not a regular file"
            elif seen.st_nlink != 1:
                faults[path] = "has another hard link, through which it could change"
            elif seen.st_size > MAX_FILE_SIZE:
                faults[path] = f"larger than {MAX_FILE_SIZE} bytes"
            else:
                found.append(_Found(path, seen))
            if len(found) > MAX_FILES:
                break
    return found


@contextmanager
def _opened(name: str, flags: int, parent: int | None) -> Iterator[int]:
    try:
        descriptor = os.open(name, _OPEN | flags, dir_fd=parent)
    except OSError as error:
        raise Permanent("unsafe model", {repr(name)[1:-1]: f"cannot be opened: {error.strerror}"}) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _reached(root: int, path: str) -> Iterator[int]:
    """A file opened from the root component by component: a directory swapped for a link is not followed."""
    head, _, rest = path.partition("/")
    if not rest:
        with _opened(head, 0, root) as descriptor:
            yield descriptor
    else:
        with _opened(head, os.O_DIRECTORY, root) as inner, _reached(inner, rest) as descriptor:
            yield descriptor


def _copy(root: int, item: _Found, write: Callable[[bytes], None]) -> File:
    digest, size = hashlib.sha256(), item.seen.st_size
    with _reached(root, item.path) as descriptor:
        before = os.fstat(descriptor)
        write(_header(item.path, size))
        left = size
        while left and (block := os.read(descriptor, min(_CHUNK, left))):
            digest.update(block)
            write(block)
            left -= len(block)
        if left or len({_identity(item.seen), _identity(before), _identity(os.fstat(descriptor))}) > 1:
            raise Permanent("unsafe model", {item.path: "changed while it was read"})
    write(b"\0" * (-size % 512))
    return File(item.path, size, digest.hexdigest())


def _identity(seen: os.stat_result) -> tuple[int, ...]:
    return (
        seen.st_mode,
        seen.st_nlink,
        seen.st_dev,
        seen.st_ino,
        seen.st_size,
        seen.st_mtime_ns,
        seen.st_ctime_ns,
    )


def _code_fault(root: int, item: _Found) -> str | None:
    """Why loading the file may run code, or None. Finds pickles, zips of them (torch), numpy object arrays.

    An obfuscated one may pass: a signature proves where a model comes from, not that it is safe to load.
    """
    if Path(item.path).suffix.lower() in PICKLES:
        return "pickle family by its name"
    with _reached(root, item.path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
        head = stream.read(512)
        if _is_pickle(head):
            return "pickle by its content"
        if head.startswith(b"PK"):
            try:
                with zipfile.ZipFile(stream) as archive:
                    for info in archive.infolist():
                        if Path(info.filename).suffix.lower() in PICKLES:
                            return "an archive with a pickle"
                        with archive.open(info) as member:
                            if _is_pickle(member.read(512)):
                                return "an archive with a pickle"
            except _BROKEN_ZIP:
                return "an archive that cannot be looked into"
    return None


def _is_pickle(head: bytes) -> bool:
    return bool(_PICKLE_MAGIC.match(head) or _NPY_OBJECTS.match(head))


def _header(path: str, size: int) -> bytes:
    """The tar blocks before a file's bytes; a PAX record carries a path that is long or not ASCII.

    Written here, not by tarfile, so that no version of Python changes a signed byte.
    """
    if path.isascii() and len(path) <= 100:
        return _block(path.encode(), size, b"0")
    body = f" path={path}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    record = str(length).encode() + body
    extended = _block(b"PaxHeaders/path", len(record), b"x") + record + b"\0" * (-len(record) % 512)
    return extended + _block(path.encode("ascii", "replace")[:100], size, b"0")


def _block(name: bytes, size: int, kind: bytes) -> bytes:
    zero, blank = b"0000000\0", b" " * 8
    head = name.ljust(100, b"\0") + b"0000644\0" + zero + zero + b"%011o\0" % size + b"00000000000\0"
    tail = kind + b"\0" * 100 + b"ustar\x0000" + b"\0" * 64 + zero + zero + b"\0" * 167
    return head + b"%06o\0 " % sum(head + blank + tail) + tail


def _end(size: int) -> bytes:
    return b"\0" * (1024 + -(size + 1024) % _RECORD)


@contextmanager
def _beside() -> Iterator[tuple[Callable[[bytes], None], Callable[[], str]]]:
    """The archive's sha256, computed in a thread a few blocks behind: hashlib lets the interpreter go on meanwhile.

    Gives what takes a block, and what gives the digest in hex once all is in.
    """
    digest, behind = hashlib.sha256(), deque[Future[None]]()
    with ThreadPoolExecutor(1) as thread:

        def update(block: bytes) -> None:
            behind.append(thread.submit(digest.update, block))
            if len(behind) > _BEHIND:
                behind.popleft().result()

        def hexdigest() -> str:
            while behind:
                behind.popleft().result()
            return digest.hexdigest()

        yield update, hexdigest


def _check(tar: BinaryIO, files: Sequence[tuple[str, str]], tar_sha256: str, target: Path | None) -> None:
    with _beside() as (update, hexdigest):
        _compare(tar, files, update, target)
        if hexdigest() != tar_sha256:
            raise _other()


def _compare(
    tar: BinaryIO, files: Sequence[tuple[str, str]], update: Callable[[bytes], None], target: Path | None
) -> None:
    size = 0

    def read(count: int) -> bytes:
        nonlocal size
        block = tar.read(count)
        if len(block) != count:
            raise _other({"size": "it ends early"})
        update(block)
        size += count
        return block

    for path, expected in files:
        # The header is what we would have written for this path and size, or it is refused: links, devices,
        # sparse files, other names and second members have no way in.
        blocks = read(len(_header(path, 0)))
        octal = blocks[-388:-376]
        length = int(octal[:11], 8) if re.fullmatch(rb"[0-7]{11}\0", octal) else 0
        if blocks != _header(path, length):
            raise _other({path: "unexpected header"})
        digest, left = hashlib.sha256(), length
        with _output(target, path) as output:
            while left:
                chunk = read(min(_CHUNK, left))
                digest.update(chunk)
                output.write(chunk)
                left -= len(chunk)
        if digest.hexdigest() != expected:
            raise _other({path: "other bytes"})
        if read(-length % 512).strip(b"\0"):
            raise _other({path: "bytes after it"})
    end = _end(size)
    if read(len(end)) != end or tar.read(1):
        raise _other()


def _other(faults: dict[str, str] | None = None) -> Permanent:
    return Permanent("the archive is not the signed one", faults, exit_code=VERIFICATION_FAILED)


def _output(target: Path | None, path: str) -> BinaryIO:
    if target is None:
        return Path(os.devnull).open("wb")
    place = target / path
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    return os.fdopen(descriptor, "wb")
