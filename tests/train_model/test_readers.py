"""What people's files become, and that no file is a bomb or a traceback."""

from __future__ import annotations

import io
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import Permanent
from tests.train_model import datasets
from train_model import readers
from train_model.readers import CIFAR_PIXELS, NoLabels, join, layout, read


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def header(descr: str, shape: str) -> bytes:
    """An .npy member that announces more than it holds."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_an_npz_of_images_becomes_flat_rows_that_know_their_shape(tmp_path: Path) -> None:
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    rows = read(npz(tmp_path / "a.npz", images=images, labels=np.array([[7], [9]])), "npz")
    assert rows.features.dtype == np.float32
    assert (rows.features == images.reshape(2, 12)).all()
    assert (rows.shape, rows.labels.tolist(), rows.slices.tolist()) == ((3, 4), [7, 9], ["", ""])


def test_an_npz_may_name_slices_and_have_text_labels(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", X=np.eye(3), y=["cat", "dog", "cat"], slice=["old", "new", ""])
    rows = read(path, "npz")
    assert (rows.labels.tolist(), rows.slices.tolist()) == (["cat", "dog", "cat"], ["old", "new", ""])


def test_a_csv_is_a_table_of_numbers_with_a_label_and_perhaps_a_slice(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\ufeffage,label,slice,income\n30,yes,old,1e3\n\n41,no,new,\n")
    rows = read(path, "csv")
    assert rows.columns == ("age", "income")
    assert rows.features.dtype == np.float64
    np.testing.assert_array_equal(rows.features, [[30, 1000], [41, np.nan]])
    assert (rows.labels.tolist(), rows.slices.tolist()) == (["yes", "no"], ["old", "new"])


@pytest.mark.parametrize(("text", "labels"), [("1,2", [1, 2]), ("1.0,2.0", [1, 2]), ("a,2", ["a", "2"])])
def test_labels_are_whole_numbers_if_all_are(tmp_path: Path, text: str, labels: list[Any]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "".join(f"0,{label}\n" for label in text.split(",")))
    assert read(path, "csv").labels.tolist() == labels


def test_a_cifar_batch_is_a_label_byte_and_3072_pixels_a_record(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(bytes([3, *[1] * CIFAR_PIXELS]) + bytes([9, *[255] * CIFAR_PIXELS]))
    rows = read(path, "cifar")
    assert (rows.labels.tolist(), rows.features.shape, rows.shape) == ([3, 9], (2, 3072), (3, 32, 32))
    assert rows.features[1].max() == 255


def test_digits_written_as_cifar_come_back(tmp_path: Path) -> None:
    part, _, _ = datasets.digits()
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(datasets.cifar_batch(part))
    assert read(path, "cifar").labels.tolist() == part.labels.tolist()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.npz", "npz"), ("deep/A.CSV", "csv"), ("data_batch_5.bin", "cifar"), ("test_batch.bin", None),
     ("README.md", None), ("_SUCCESS", None), ("model.pkl", None), ("data_batch_1", None)],
)  # fmt: skip
def test_files_are_known_by_their_names(name: str, kind: str | None) -> None:
    assert layout(name) == kind


def test_data_without_labels_says_so_by_its_own_name(tmp_path: Path) -> None:
    bare = npz(tmp_path / "a.npz", X=np.eye(3))
    missing = npz(tmp_path / "b.npz", X=np.eye(3), y=np.full(3, np.nan))
    table = tmp_path / "c.csv"
    table.write_text("a,b\n1,2\n")
    empty = tmp_path / "d.csv"
    empty.write_text("a,label\n1,\n2,\n")
    for path in (bare, missing, table, empty):
        with pytest.raises(NoLabels):
            read(path, path.suffix[1:])


def test_an_array_of_objects_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (ran,)

    path = npz(tmp_path / "a.npz", X=np.array([[Evil()]], dtype=object), y=np.array([1]))
    with pytest.raises(Permanent):
        read(path, "npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(Permanent):
        read(tmp_path / "b.npz", "npz")
    assert not ran.exists()


@pytest.mark.parametrize("shape", ["(1000000000000, 8)", "(-1, 8)", "(8,)"])
def test_a_header_that_announces_more_than_there_is_allocates_nothing(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", header("<f8", shape) + b"\0" * 8)
        archive.writestr("y.npy", header("<i8", "(1,)") + b"\0" * 8)
    with pytest.raises(Permanent, match="what its header says"):
        read(path, "npz")


def test_a_zip_bomb_is_refused_by_its_announced_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, X=np.zeros((1000, 1000)), y=np.zeros(1000))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(readers, "MAX_BYTES", 1_000_000)
    with pytest.raises(Permanent, match="unpacked"):
        read(path, "npz")


@pytest.mark.parametrize(
    "text",
    ["", "label\n1\n", "a,label\n1\n", "a,label\nx,1\n", "a,a,label\n1,2,3\n", "a,label\n1,\n2,x\n", 'a,label\n"1,2\n',
     "a,label\n1,0.5\n", "a,label\n1,\xff\n", "a,label\n" + "9" * 400 + ",nan\n", "a,label\n1," + "x" * 70 + "\n"],
)  # fmt: skip
def test_a_broken_csv_is_bad_data(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Permanent):
        read(path, "csv")


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    one = read(npz(tmp_path / "a.npz", X=np.eye(3), y=[1, 2, 3]), "npz")
    wide = read(npz(tmp_path / "b.npz", X=np.eye(4), y=[1, 2, 3, 4]), "npz")
    texts = read(npz(tmp_path / "c.npz", X=np.eye(3), y=["a", "b", "c"]), "npz")
    assert len(join([one, one])) == 6
    for other in (wide, texts):
        with pytest.raises(Permanent):
            join([one, other])


def mutated() -> st.SearchStrategy[bytes]:
    """Real files with a few bytes changed, cut or doubled; and plain garbage."""
    buffer = io.BytesIO()
    np.savez(buffer, X=np.eye(3), y=np.arange(3))
    real = st.sampled_from([buffer.getvalue(), b"a,label\n1,2\n3,4\n", bytes(3073)])
    edits = st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=6)), max_size=4)

    def edit(data: bytes, changes: list[tuple[int, bytes]]) -> bytes:
        for place, new in changes:
            at = place % (len(data) + 1)
            data = data[:at] + new + data[at + len(new) // 2 :]
        return data

    return st.one_of(st.binary(max_size=200), st.builds(edit, real, edits))


@given(mutated(), st.sampled_from(["npz", "csv", "cifar"]))
def test_whatever_the_bytes_are_they_are_rows_or_bad_data(data: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        try:
            rows = read(path, kind)
        except Permanent:
            return  # anything else would be a traceback in a step
        assert rows.features.shape[0] == len(rows.labels) == len(rows.slices) > 0


def test_bad_data_is_exit_code_65(tmp_path: Path) -> None:
    with pytest.raises(Permanent) as caught:
        read(tmp_path / "absent.npz", "npz")
    assert caught.value.exit_code == 65
