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


def test_a_model_too_deep_too_large_or_of_too_many_files_is_refused(world: World) -> None:
    model = world.make_model()
    (model / "/".join(["d"] * 33)).mkdir(parents=True)
    with (model / "large").open("wb") as stream:
        stream.truncate(8 << 30)
    with pytest.raises(Permanent) as caught:
        manifest.walk(model)
    assert caught.value.faults.keys() == {"/".join(["d"] * 32), "large"}
    many = world.root / "many"
    many.mkdir()
    for number in range(10_001):
        (many / str(number)).touch()
    with pytest.raises(Permanent, match="files: 10001"):
        manifest.walk(many)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_zip_is_refused_by_name_whatever_its_decoder_says(method: int, world: World) -> None:
    model = world.make_model()
    with zipfile.ZipFile(model / "weights.zip", "w", method) as archive:
        archive.writestr("a", hashlib.shake_128().digest(2000))  # which no method makes smaller
    data = bytearray((model / "weights.zip").read_bytes())
    data[31:60] = b"\xff" * 29  # from the first byte of what is compressed
    (model / "weights.zip").write_bytes(data)
    with pytest.raises(Permanent, match=r"weights\.zip: an archive that cannot be looked into"):
        packed(model)


def test_names_that_are_not_utf8_are_refused(world: World) -> None:
    model = world.make_model()
    Path(os.fsdecode(os.fsencode(model) + b"/bad\xff")).touch()
    with pytest.raises(Permanent, match="undecodable"):
        manifest.walk(model)


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


@pytest.mark.parametrize("tar", [b"", b"\0" * 10_240, b"x" * 600], ids=["nothing", "an empty archive", "noise"])
def test_what_is_no_archive_of_ours_is_refused_and_leaves_nothing(tar: bytes, tmp_path: Path) -> None:
    files = [("a", hashlib.sha256(b"one").hexdigest())]
    with pytest.raises(Permanent, match="not the signed one"):
        manifest.unpack(io.BytesIO(tar), files, hashlib.sha256(tar).hexdigest(), tmp_path / "target")
    assert not [*tmp_path.iterdir()]


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
