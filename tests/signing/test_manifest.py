"""A model's files: what is refused, what the digest and the tar are."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis import manifest
from aegis.errors import VERIFICATION_FAILED, Permanent
from aegis.manifest import File
from tests.signing.world import World


def packed(directory: Path, *, allow_pickle: bool = False) -> tuple[manifest.Packed, bytes]:
    stream = io.BytesIO()
    result = manifest.pack(directory, stream, allow_pickle=allow_pickle)
    return result, stream.getvalue()


def test_files_come_in_the_order_of_their_path_components(world: World) -> None:
    paths = [file.path for file in manifest.walk(world.make_model())]
    assert paths == ["MLmodel", "aegis_dataset.json", "data/weights.bin", "data.txt"]


def test_the_root_digest_is_that_of_the_files_digests_in_path_order(world: World) -> None:
    files = manifest.walk(world.make_model())
    digests = [hashlib.sha256((world.root / "model" / file.path).read_bytes()).digest() for file in files]
    assert manifest.root_digest(reversed(files)) == hashlib.sha256(b"".join(digests)).hexdigest()


def test_the_tar_depends_on_names_and_bytes_only_and_hashes_as_a_walk_does(world: World) -> None:
    one, two = world.make_model("one"), world.make_model("two")
    os.utime(two / "MLmodel", (1, 1))
    (two / "MLmodel").chmod(0o755)
    first, tar = packed(one)
    second, same = packed(two)
    assert tar == same
    assert first == second
    assert hashlib.sha256(tar).hexdigest() == first.tar_sha256
    assert len(tar) == first.tar_size
    assert [*first.files] == manifest.walk(one)


def test_a_stock_tar_reads_every_member_back(world: World) -> None:
    model = world.make_model()
    (model / ("é" * 90)).write_text("not ASCII")
    deep = model / ("d" * 80) / ("e" * 80)
    deep.mkdir(parents=True)
    (deep / "empty").touch()
    (model / "exact").write_bytes(b"x" * 512)
    result, tar = packed(model)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [file.path for file in result.files]
        assert all(member.isreg() and member.mode == 0o644 and member.mtime == member.uid == 0 for member in members)
        for member in members:
            content = archive.extractfile(member)
            assert content is not None
            assert content.read() == (model / member.name).read_bytes()


def test_every_unsafe_file_is_named_at_once(world: World) -> None:
    model = world.make_model()
    (model / "link").symlink_to("/etc/passwd")
    (model / "linked-dir").symlink_to("/etc")
    os.link(model / "MLmodel", model / "data" / "hard")
    os.mkfifo(model / "pipe")
    (model / ".gitattributes").touch()
    (model / ".git").mkdir()
    (model / ".git" / "evil.py").touch()
    (model / "new\nline").touch()
    (model / "right\u202eleft").touch()
    (model / "back\\slash").touch()
    with pytest.raises(Permanent) as caught:
        manifest.walk(model)
    assert caught.value.faults.keys() == {
        *("link", "linked-dir", "data/hard", "MLmodel", "pipe", ".gitattributes", ".git"),
        *("new\\nline", "right\\u202eleft", "back\\\\slash"),
    }
    assert caught.value.exit_code == 65


def test_names_that_are_not_utf8_are_refused(world: World) -> None:
    model = world.make_model()
    Path(os.fsdecode(os.fsencode(model) + b"/bad\xff")).touch()
    with pytest.raises(Permanent, match="undecodable"):
        manifest.walk(model)


def test_twins_are_refused(world: World) -> None:
    model = world.make_model()
    (model / "mlMODEL").touch()
    (model / "\u00e9").touch()
    (model / "e\u0301").touch()
    with pytest.raises(Permanent) as caught:
        manifest.walk(model)
    assert len(caught.value.faults) == 2


def test_an_empty_model_a_missing_one_and_a_linked_one_are_refused(world: World) -> None:
    (world.root / "empty").mkdir()
    (world.root / "linked").symlink_to(world.make_model())
    for name in ("empty", "missing", "linked"):
        with pytest.raises(Permanent):
            manifest.walk(world.root / name)


def write_npz(path: Path) -> None:
    np.savez(path, a=np.array([{}], dtype=object))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", "x")


PICKLES: dict[str, Callable[[Path], object]] = {
    "model.pkl": lambda path: path.write_bytes(b"anything"),
    "MODEL.JOBLIB": lambda path: path.write_bytes(b"anything"),
    "weights.pt": lambda path: path.write_bytes(b"anything"),
    "two.bin": lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)),
    "three.dat": lambda path: path.write_bytes(pickle.dumps([1], protocol=3)),
    "four": lambda path: path.write_bytes(pickle.dumps([1], protocol=4)),
    "five.txt": lambda path: path.write_bytes(pickle.dumps("x" * 1000, protocol=5)),
    "torch.model": write_zip,
    "objects.npz": write_npz,
    "objects.npy": lambda path: np.save(path, np.array([{}], dtype=object)),
}


def test_pickles_are_denied_by_name_and_content_all_named_at_once_unless_allowed(world: World) -> None:
    model = world.make_model()
    for name, write in PICKLES.items():
        write(model / name)
    np.savez(model / "plain.npz", a=np.zeros(3), b=np.array(["a", "b"]))
    np.save(model / "plain.npy", np.zeros((2, 2), dtype=np.float32))
    (model / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(Permanent) as caught:
        packed(model)
    assert caught.value.faults.keys() == PICKLES.keys()
    assert len(packed(model, allow_pickle=True)[0].files) == len(PICKLES) + 7


class Grows(io.BytesIO):
    """Changes a file of the model when its header is written."""

    def __init__(self, change: Callable[[], object]) -> None:
        super().__init__()
        self.change = change

    def write(self, block: object) -> int:
        if self.tell() == 0:
            self.change()
        return super().write(block)  # type: ignore[arg-type]


def test_a_file_that_changes_while_it_is_packed_is_refused(world: World) -> None:
    model = world.make_model()
    changes: list[Callable[[], object]] = [
        lambda: (model / "MLmodel").write_text("flavors: {!}\n"),
        lambda: (model / "MLmodel").write_text("shorter"),
        lambda: os.link(model / "MLmodel", world.root / "later"),
    ]
    for change in changes:
        with pytest.raises(Permanent, match="changed while it was read"):
            manifest.pack(model, Grows(change))
        (world.root / "later").unlink(missing_ok=True)
        (model / "MLmodel").write_text("flavors: {}\n")


def test_a_directory_swapped_for_a_link_while_packing_is_not_followed(world: World) -> None:
    model, other = world.make_model(), world.make_model("other", "evil")

    def swap() -> None:
        (model / "data").rename(world.root / "away")
        (model / "data").symlink_to(other / "data")

    with pytest.raises(Permanent, match="cannot be opened"):
        manifest.pack(model, Grows(swap))


def expected(result: manifest.Packed) -> list[tuple[str, str]]:
    return [(file.path, file.sha256) for file in result.files]


def test_unpacking_gives_the_same_model_back_by_one_rename(world: World) -> None:
    result, tar = packed(world.make_model())
    target = world.root / "deep" / "target"
    manifest.unpack(io.BytesIO(tar), expected(result), result.tar_sha256, target)
    assert manifest.walk(target) == [*result.files]
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    with pytest.raises(Permanent, match="empty directory"):
        manifest.unpack(io.BytesIO(tar), expected(result), result.tar_sha256, target)


def hostile(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """A tar by tarfile: (name, content, type, link) each."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content, kind, link in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, link
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


REG = tarfile.REGTYPE
HOSTILE = {
    "a second member of the same name": hostile(("a", b"one", REG, ""), ("a", b"one", REG, "")),
    "a member more": hostile(("a", b"one", REG, ""), ("b", b"two", REG, "")),
    "a symlink": hostile(("a", b"", tarfile.SYMTYPE, "/etc/passwd")),
    "a hard link": hostile(("a", b"", tarfile.LNKTYPE, "/etc/passwd")),
    "a device": hostile(("a", b"", tarfile.CHRTYPE, "")),
    "a FIFO": hostile(("a", b"", tarfile.FIFOTYPE, "")),
    "a traversal": hostile(("../a", b"one", REG, "")),
    "an absolute name": hostile(("/a", b"one", REG, "")),
    "a GNU sparse file": hostile(("a", b"one", tarfile.GNUTYPE_SPARSE, "")),
    "a long-name record": hostile(("././@LongLink", b"a\0", tarfile.GNUTYPE_LONGNAME, ""), ("a", b"one", REG, "")),
    "nothing": hostile(),
    "no bytes at all": b"",
    "another name": hostile(("b", b"one", REG, "")),
    "other bytes": hostile(("a", b"two", REG, "")),
    "a cut": hostile(("a", b"one", REG, ""))[:600],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_tar_is_refused_even_under_its_own_digest_and_leaves_nothing(what: str, tmp_path: Path) -> None:
    tar, files = HOSTILE[what], [("a", hashlib.sha256(b"one").hexdigest())]
    with pytest.raises(Permanent) as caught:
        manifest.unpack(io.BytesIO(tar), files, hashlib.sha256(tar).hexdigest(), tmp_path / "target")
    assert caught.value.exit_code == VERIFICATION_FAILED
    assert not [*tmp_path.iterdir()]


# "a" with three bytes: header to 512, content to 515, padding to 1024, then the end.
ALTERED: dict[str, Callable[[bytearray], object]] = {
    "another byte of the file": lambda tar: tar.__setitem__(512, 1),
    "a byte in the padding": lambda tar: tar.__setitem__(600, 1),
    "a byte in the end": lambda tar: tar.__setitem__(2000, 1),
    "a byte after the end": lambda tar: tar.append(0),
    "another mode": lambda tar: tar.__setitem__(104, ord("7")),
}


@pytest.mark.parametrize("what", ALTERED)
def test_our_own_tar_altered_is_refused_even_under_its_new_digest(what: str, world: World) -> None:
    (world.root / "model").mkdir()
    (world.root / "model" / "a").write_bytes(b"one")
    result, tar = packed(world.root / "model")
    altered = bytearray(tar)
    ALTERED[what](altered)
    with pytest.raises(Permanent, match="not the signed one"):
        manifest.unpack(io.BytesIO(altered), expected(result), hashlib.sha256(altered).hexdigest(), None)
    with pytest.raises(Permanent, match="not the signed one"):
        manifest.unpack(io.BytesIO(tar), expected(result), "00" * 32, None)


@pytest.mark.parametrize(
    "paths",
    [
        ["../a"],
        ["/a"],
        ["a//b"],
        ["a/./b"],
        ["b", "a"],
        ["a", "a"],
        ["a", "a/b"],
        ["A", "a/b"],
        ["/" * 1_000_000],
        ["a"] * 10_001,
        [],
        [".git/x"],
        ["x" * 256],
    ],
)
def test_an_unsafe_signed_list_is_refused_before_anything_is_read(paths: list[str], tmp_path: Path) -> None:
    files = [(path, "00" * 32) for path in paths]
    with pytest.raises(Permanent) as caught:
        manifest.unpack(io.BytesIO(b""), files, "00" * 32, tmp_path / "target")
    assert caught.value.exit_code == VERIFICATION_FAILED
    assert not [*tmp_path.iterdir()]


def test_every_byte_of_the_tar_counts(world: World) -> None:
    (world.root / "model").mkdir()
    (world.root / "model" / "a").write_bytes(b"one")
    result, tar = packed(world.root / "model")
    for place in [*range(0, 1600, 7), len(tar) - 1]:
        flipped = bytearray(tar)
        flipped[place] ^= 1
        with pytest.raises(Permanent):
            manifest.unpack(io.BytesIO(flipped), expected(result), result.tar_sha256, None)
    for other in (tar + b"\0", tar[:-1]):
        with pytest.raises(Permanent):
            manifest.unpack(io.BytesIO(other), expected(result), result.tar_sha256, None)


NAMES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\"), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=1500), max_size=5))
def test_what_the_checks_accept_survives_pack_and_unpack(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]
) -> None:
    paths = sorted(contents, key=lambda path: path.split("/"))
    if manifest.list_faults(paths) or any(len(part.encode()) > 255 for path in paths for part in path.split("/")):
        return
    root = tmp_path_factory.mktemp("any")
    for path in paths:
        (root / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "in" / path).write_bytes(contents[path])
    result, tar = packed(root / "in", allow_pickle=True)
    assert result.files == tuple(
        File(path, len(contents[path]), hashlib.sha256(contents[path]).hexdigest()) for path in paths
    )
    manifest.unpack(io.BytesIO(tar), expected(result), result.tar_sha256, root / "out")
    assert manifest.walk(root / "out") == [*result.files]


def test_gnu_tar_lists_the_archive_without_a_word(world: World) -> None:
    model = world.make_model()
    (model / ("n" * 150)).touch()
    _, tar = packed(model)
    done = subprocess.run(["tar", "-tf", "-"], input=tar, capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 5
    assert not done.stderr
