"""What people's files become, and that no file is a bomb or a traceback."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import tempfile
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aegis.errors import Permanent
from tests.train_model import datasets
from train_model import images, readers
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
     ("a/b.JPEG", "image"),
     ("a.parquet", "parquet"), ("_metadata.parquet", None),
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


# --- Parquet


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_a_parquet_file_is_a_table_as_a_csv_is(tmp_path: Path) -> None:
    columns = {"age": [30, 41], "income": [1e3, None], "old": [True, False], "label": ["yes", "no"], "slice": ["a", ""]}
    rows = read(parquet(tmp_path / "a.parquet", columns), "parquet")
    assert rows.columns == ("age", "income", "old")
    np.testing.assert_array_equal(rows.features, [[30, 1000, 1], [41, np.nan, 0]])
    assert (rows.labels.tolist(), rows.slices.tolist()) == (["yes", "no"], ["a", ""])


def test_what_pandas_writes_is_read_without_its_index(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [0.5, 1.5, 2.5], "y": pd.Categorical(["b", "a", "b"])}, index=[7, 8, 9])
    frame.to_parquet(tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", "parquet")
    assert (rows.columns, rows.labels.tolist()) == (("x",), ["b", "a", "b"])


def test_many_row_groups_come_in_their_order(tmp_path: Path) -> None:
    numbers = list(range(1000))
    path = parquet(tmp_path / "a.parquet", {"x": numbers, "label": numbers}, row_group_size=7)
    assert read(path, "parquet").features[:, 0].tolist() == read(path, "parquet").labels.tolist() == numbers


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"x": ["a"], "label": [1]}, r"no numbers: x \(string\)"),
        ({"x": [[1.0]], "label": [1]}, "no numbers: x"),
        ({"x": [1], "label": [datetime(2026, 1, 1, tzinfo=UTC)]}, r"no numbers: label \(timestamp"),
        ({"x": [1]}, "not named"),
        ({"x": [1], "z": [2]}, "no column label"),
        ({"x": [1], "label": [None]}, "no numbers: label"),
        ({"x": [1.0, 2.0], "label": ["a", None]}, "some labels are empty"),
        ({"label": [1], "slice": ["a"]}, "no columns of numbers"),
    ],
)
def test_a_parquet_file_that_is_no_table_says_why(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    with pytest.raises(Permanent, match=told):
        read(parquet(tmp_path / "a.parquet", columns), "parquet")


def test_a_parquet_bomb_is_refused_by_its_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "a.parquet", {"x": np.zeros(1_000_000), "label": np.zeros(1_000_000, dtype=np.int8)})
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(readers, "MAX_BYTES", 1_000_000)
    with pytest.raises(Permanent, match="unpacked"):
        read(path, "parquet")


def test_a_long_text_repeated_in_parquet_takes_no_memory(tmp_path: Path) -> None:
    codes = pa.array(np.zeros(20_000, dtype=np.int32))
    labels = pa.DictionaryArray.from_arrays(codes, pa.array(["x" * 100_000]))  # 2 GB, written out
    path = parquet(tmp_path / "a.parquet", {"x": np.zeros(20_000), "label": labels}, store_schema=False)
    assert path.stat().st_size < 10_000
    with pytest.raises(Permanent, match="longer than 64"):
        read(path, "parquet")
    assert pa.default_memory_pool().max_memory() < 500_000_000


def test_without_pyarrow_the_answer_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "a.parquet", {"x": [1], "label": [1]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Permanent, match="extra `parquet`"):
        read(path, "parquet")


@given(st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=4)), min_size=1, max_size=4))
def test_whatever_a_parquet_file_holds_it_is_rows_or_bad_data(changes: list[tuple[int, bytes]]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1.0, 2.0], "label": ["a", "b"]}), sink)
    data = sink.getvalue().to_pybytes()
    for place, new in changes:
        at = place % len(data)
        data = data[:at] + new + data[at + len(new) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        with contextlib.suppress(Permanent):
            assert len(read(path, "parquet")) > 0


# --- quantities


def test_labels_of_a_regression_are_numbers_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n0,1\n1,2.5\n")
    assert read(path, "csv", numbers=True).labels.tolist() == [1.0, 2.5]
    with pytest.raises(Permanent, match=r"spec\.trainer\.task: regression"):
        read(path, "csv")
    path.write_text("x,y\n0,a\n1,2.5\n")
    with pytest.raises(Permanent, match="no numbers, which"):
        read(path, "csv", numbers=True)
    path.write_text("x,y\n0,nan\n1,2.5\n")
    with pytest.raises(Permanent, match="missing or infinite"):
        read(path, "csv", numbers=True)


def test_a_message_names_the_file_as_its_owner_knows_it_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "17"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(NoLabels, match=r"^week/1\.csv has no column label .*fresh data often has no labels yet"):
        read(path, "csv", name="week/1.csv")


def test_a_csv_of_more_rows_or_numbers_than_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,label\n" + "1,2\n" * 100)
    monkeypatch.setattr(readers, "MAX_ROWS", 99)
    with pytest.raises(Permanent, match="more than 99 rows"):
        read(path, "csv")


# --- images


def picture(path: Path, size: tuple[int, int] = (4, 3), mode: str = "L", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 100).save(path, **options)
    return path


def read_images(root: Path, *, numbers: bool = False) -> readers.Rows:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    names = [str(path.relative_to(root)) for path in paths]
    return images.rows([(n, images.pixels(p, n)) for n, p in zip(names, paths, strict=True)], numbers)


def test_the_folder_of_an_image_is_its_label(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.png")
    picture(tmp_path / "set" / "dog" / "1.jpg")
    rows = read_images(tmp_path)
    assert (rows.shape, rows.labels.tolist(), rows.features.dtype.name) == ((3, 4), ["cat", "dog"], "float32")
    np.testing.assert_allclose(rows.features, 100, atol=1)


def test_folders_with_numbers_are_classes_and_quantities(tmp_path: Path) -> None:
    picture(tmp_path / "03" / "1.png")
    picture(tmp_path / "4.0" / "1.png")
    assert read_images(tmp_path).labels.tolist() == [3, 4]
    picture(tmp_path / "4.5" / "1.png")
    assert read_images(tmp_path, numbers=True).labels.tolist() == [3, 4, 4.5]


def test_among_coloured_images_grey_and_transparent_ones_become_coloured(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", mode="RGBA")
    picture(tmp_path / "a" / "2.png", mode="LA")
    picture(tmp_path / "b" / "3.png", mode="P")
    assert read_images(tmp_path).shape == (3, 4, 3)


def test_images_of_another_size_are_named(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "a" / f"{number}.png")
    picture(tmp_path / "b" / "odd.png", (5, 3))
    with pytest.raises(Permanent, match=r"3 of 4 x 3, 1 of 5 x 3; not the usual one: b/odd\.png"):
        read_images(tmp_path)


def test_an_image_in_no_folder_has_no_label(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    with pytest.raises(NoLabels, match=r"1\.png lie in no folder"):
        read_images(tmp_path)


def test_an_image_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for width, height in ((2049, 2048), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        data = chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
        with pytest.raises(Permanent, match=r"at most 4,194,304|bomb"):
            images.pixels(tmp_path / "a.png", "a.png")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "EPS"])
def test_no_other_format_is_decoded_whatever_its_name(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png", format=kind)
    with pytest.raises(Permanent, match="no readable PNG or JPEG file"):
        images.pixels(tmp_path / "a.png", "a.png")


def test_sixteen_bits_are_refused_not_cut(tmp_path: Path) -> None:
    Image.new("I;16", (4, 3), 40_000).save(tmp_path / "a.png")
    with pytest.raises(Permanent, match="more than 8 bits"):
        images.pixels(tmp_path / "a.png", "a.png")


def test_images_that_do_not_fit_together_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "2.png")
    monkeypatch.setattr(readers, "MAX_BYTES", 2 * 4 * 3 * 4 - 1)
    with pytest.raises(Permanent, match="more than fit"):
        read_images(tmp_path)


@given(st.sampled_from(["PNG", "JPEG"]), st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=6)), max_size=4))
def test_whatever_an_image_holds_it_is_pixels_or_bad_data(kind: str, changes: list[tuple[int, bytes]]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (1, 2, 3)).save(buffer, format=kind)
    data = buffer.getvalue()
    for place, new in changes:
        at = place % len(data)
        data = data[:at] + new + data[at + len(new) // 2 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        with contextlib.suppress(Permanent):
            assert images.pixels(path, "x").size <= 3 * images.MAX_PIXELS
