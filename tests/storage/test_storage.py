"""One contract over a folder, fake-gcs-server and moto; then what only one of them can show."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import AlreadyExists, Conflict, NotFound, Permanent, Temporary
from aegis.storage import FileStore, Location, Store, open_store
from tests.storage.servers import BUCKET
from tests.support import free_port

Opener = Callable[[str], Store]


@pytest.fixture(params=["file", "gs", "s3"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens stores below a place of this test's own."""
    name = tmp_path.name  # one of its own for each test
    if request.param == "file":
        return lambda path: open_store(f"file://{tmp_path}/{path}", env={})
    env = request.getfixturevalue("gcs" if request.param == "gs" else "s3")
    return lambda path: open_store(f"{request.param}://{BUCKET}/{name}/{path}", env=env)


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener("root")


def test_what_was_created_is_read_listed_and_downloaded(store: Store, tmp_path: Path) -> None:
    big = bytes(range(256)) * 20_000
    source = tmp_path / "source.bin"
    source.write_bytes(big)
    store.create("b/big.bin", source)
    store.create("a.txt", b"small")
    listed = store.list()
    assert [(entry.path, entry.size) for entry in listed] == [("a.txt", 5), ("b/big.bin", len(big))]
    assert [store.head(entry.path) for entry in listed] == listed
    assert store.read("a.txt", limit=5) == b"small"
    store.download("b/big.bin", tmp_path / "copy", limit=len(big))
    assert (tmp_path / "copy").read_bytes() == big


def test_an_empty_place_lists_nothing_and_has_no_head(store: Store) -> None:
    assert store.list() == []
    assert store.head("nothing") is None
    with pytest.raises(NotFound):
        store.read("nothing", limit=10)


def test_create_never_replaces(store: Store) -> None:
    store.create("x", b"first")
    with pytest.raises(AlreadyExists):
        store.create("x", b"second")
    assert store.read("x", limit=10) == b"first"


def test_nothing_larger_than_the_limit_is_read_or_left_behind(store: Store, tmp_path: Path) -> None:
    store.create("x", b"12345")
    with pytest.raises(Permanent, match="allowed"):
        store.read("x", limit=4)
    with pytest.raises(Permanent, match="allowed"):
        store.download("x", tmp_path / "copy", limit=4)


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.create("empty", b"")
    assert store.read("empty", limit=0) == b""


def test_swap_goes_from_version_to_version(store: Store) -> None:
    first = store.swap("p", b"1", None)
    second = store.swap("p", b"2", first)
    assert first != second
    assert store.read("p", limit=9) == b"2"
    entry = store.head("p")
    assert entry is not None
    assert entry.version == second
    for stale in (first, None, "never-was"):
        with pytest.raises(Conflict):
            store.swap("p", b"3", stale)
    assert store.read("p", limit=9) == b"2"


@pytest.mark.parametrize("exists", [False, True])
def test_of_eight_racers_exactly_one_wins(opener: Opener, exists: bool) -> None:
    before = opener("root").swap("p", b"0", None) if exists else None
    start, won, lost = threading.Barrier(8), list[bytes](), list[bytes]()

    def race(store: Store, data: bytes) -> None:
        start.wait(30)
        try:
            store.swap("p", data, before)
            won.append(data)
        except Conflict:
            lost.append(data)

    racers = [threading.Thread(target=race, args=(opener("root"), b"racer %d" % n)) for n in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert (len(won), len(lost)) == (1, 7)
    assert opener("root").read("p", limit=99) == won[0]


def test_a_neighbour_whose_name_begins_alike_is_not_below(opener: Opener) -> None:
    opener("data").create("x", b"1")
    opener("data-secret").create("y", b"2")
    assert [entry.path for entry in opener("data").list()] == ["x"]


@pytest.mark.parametrize("path", ["", "/x", "../x", "a/../b", "a//b", "a%2fb", "a\x00b", "a\nb", ".", ".aegis-lock"])
def test_a_path_that_is_not_plain_is_refused(store: Store, path: str) -> None:
    for call in (
        lambda: store.read(path, limit=1),
        lambda: store.head(path),
        lambda: store.create(path, b""),
        lambda: store.swap(path, b"", None),
    ):
        with pytest.raises(Permanent):
            call()


# --- errors


def test_a_bucket_that_is_not_there_is_a_permanent_fault(
    gcs: Mapping[str, str], s3: Mapping[str, str], tmp_path: Path
) -> None:
    for uri, env in (("gs://absent/x", gcs), ("s3://absent/x", s3), (f"file://{tmp_path}/absent", {})):
        store = open_store(uri, env=env)
        with pytest.raises(Permanent):
            store.read("x", limit=1)


def test_a_bucket_that_does_not_answer_is_a_temporary_fault_without_a_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aegis.storage.CONNECT", 0.2)
    monkeypatch.setattr("aegis.storage.READ", 0.2)
    monkeypatch.setattr("aegis.storage.ATTEMPTS", 1)
    dead = f"http://127.0.0.1:{free_port()}"
    keys = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "s3cr3t-value"}
    for uri, env in (
        ("gs://b/x", {"STORAGE_EMULATOR_HOST": dead}),
        ("s3://b/x", {"AWS_ENDPOINT_URL": dead, **keys}),
    ):
        with pytest.raises(Temporary) as caught:
            open_store(uri, env=env).read("x", limit=1)
        assert uri in str(caught.value)
        assert "s3cr3t-value" not in str(caught.value)


def test_bytes_that_differ_from_what_the_bucket_announced_are_noticed(s3: Mapping[str, str]) -> None:
    store = open_store(f"s3://{BUCKET}/damaged", env=s3)
    store.create("x", b"right")
    client = store._client  # type: ignore[attr-defined]
    honest = client.get_object

    def damaged(**arguments: str) -> object:
        return honest(**arguments) | {"ETag": '"' + "0" * 32 + '"'}

    client.get_object = damaged
    with pytest.raises(Temporary, match="damaged"):
        store.read("x", limit=9)


def test_a_wrong_crc32c_is_noticed(gcs: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"gs://{BUCKET}/damaged", env=gcs)
    store.create("x", b"right")
    find = store._find  # type: ignore[attr-defined]

    def damaged(path: str) -> object:
        blob = find(path)
        blob._properties["crc32c"] = "AAAAAA=="
        return blob

    monkeypatch.setattr(store, "_find", damaged)
    with pytest.raises(Temporary, match="damaged"):
        store.read("x", limit=9)


# --- the folder


def test_links_and_special_files_are_not_seen_nor_followed(tmp_path: Path) -> None:
    import os

    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "pipe")
    store = FileStore(root)
    assert store.list() == []
    for name in ("link", "pipe"):
        with pytest.raises((Permanent, Temporary)):
            store.read(name, limit=99)


def test_a_listing_that_never_ends_is_cut(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        store.create(f"{number}", b"")
    monkeypatch.setattr("aegis.storage.MAX_ENTRIES", 2)
    with pytest.raises(Permanent, match="more than 2"):
        store.list()


# --- URIs


@pytest.mark.parametrize(
    "uri",
    ["", "data", "/data", "http://h/x", "gs://", "gs:///x", "file://host/x", "s3://b/../x", "s3://b/a%2e/x",
     "s3://b//x", "s3://b/{{x}}", "s3://b/x?y", "s3://b/x#y", "s3://u:p@b/x", "s3://b/x\n", "gs://b/\u202ex"],
)  # fmt: skip
def test_a_uri_that_is_not_plain_is_refused(uri: str) -> None:
    with pytest.raises(Permanent):
        Location.parse(uri)


@given(st.text(max_size=60), st.sampled_from(["s3://b/", "gs://b/", "file:///", ""]))
def test_any_text_is_a_location_or_a_permanent_fault(text: str, head: str) -> None:
    try:
        location = Location.parse(head + text)
    except Permanent:
        return
    assert ".." not in location.segments
