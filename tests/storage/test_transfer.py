"""Downloads that are cut, resumed, replaced in the middle and damaged: real buckets behind the fault proxy."""

from __future__ import annotations

import base64
import resource
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from aegis import transfer
from aegis.errors import Conflict, NotFound, Permanent, Temporary
from aegis.storage import Entry, Store, open_store
from aegis.transfer import Job, Sink
from tests.faults.proxy import Fault, FaultProxy, Kind
from tests.storage.servers import BUCKET

PART, CHUNK = 1 << 16, 1 << 14
DATA = bytes(range(251)) * 1000  # no two parts alike; the last one is short
OBJECT = r".*(/|%2F)x"  # the Google client asks for the bucket too, in a thread of its own, for traces
RANGES = [(start, min(start + PART, len(DATA)) - 1) for start in range(0, len(DATA), PART)]


@pytest.fixture(params=["gs", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A bucket behind a proxy that keeps no two calls apart but by their ranges; parts of 64 KiB; nobody waits."""
    monkeypatch.setattr(transfer, "PART", PART)
    monkeypatch.setattr(transfer, "BUFFER", CHUNK)
    monkeypatch.setattr("aegis.storage.CHUNK", CHUNK)
    monkeypatch.setattr("aegis.storage.ATTEMPTS", 1)  # boto3's own tries of one call
    env = request.getfixturevalue("gcs" if request.param == "gs" else "s3")
    variable = "STORAGE_EMULATOR_HOST" if request.param == "gs" else "AWS_ENDPOINT_URL"
    with FaultProxy(f"fetch to {request.param}", int(env[variable].rpartition(":")[2])) as proxy:
        uri = f"{request.param}://{BUCKET}/{tmp_path.name}"
        yield Place(proxy, open_store(uri, env={**env, variable: proxy.url}), open_store(uri, env=env))


class Place:
    """The same objects with and without the proxy in between."""

    def __init__(self, proxy: FaultProxy, store: Store, direct: Store) -> None:
        self.proxy, self.store, self.direct = proxy, store, direct

    def entry(self, path: str) -> Entry:
        found = self.direct.head(path)
        assert found is not None
        return found

    def bring(self, tmp_path: Path, *paths: str, pause: Callable[[float], object] = lambda _: None) -> list[bytes]:
        """The objects by their entries of now; the digests are checked on the way."""
        return self.bring_entries(tmp_path, [self.entry(path) for path in paths], pause)

    def bring_entries(
        self, tmp_path: Path, entries: list[Entry], pause: Callable[[float], object] = lambda _: None
    ) -> list[bytes]:
        wanted = [(entry, tmp_path / f"copy-{number}") for number, entry in enumerate(entries)]
        list(self.store.bring(wanted, lambda _: None, pause))
        return [path.read_bytes() for _, path in wanted]

    def spans(self) -> list[tuple[int, int]]:
        """The ranges asked for, in order of their beginning."""
        told = [call.span.removeprefix("bytes=").partition("-") for call in self.proxy.calls if call.span]
        return sorted((int(start), int(stop)) for start, _, stop in told)


def test_a_large_object_comes_in_ranges_and_each_once(place: Place, tmp_path: Path) -> None:
    place.direct.create("x", DATA)
    assert place.bring(tmp_path, "x") == [DATA]
    assert place.spans() == RANGES


@pytest.mark.parametrize("keep", [0, 1, 20_000, 50_000])
def test_what_came_before_a_cut_is_not_asked_for_again(place: Place, tmp_path: Path, keep: int) -> None:
    place.direct.create("x", DATA)
    fault = place.proxy.add(Fault(Kind.CUT, OBJECT, nth=2, keep=keep))
    assert place.bring(tmp_path, "x") == [DATA]
    assert fault.fired == 1
    [(start, stop)] = (Counter(place.spans()) - Counter(RANGES)).elements()
    [cut] = [span for span in RANGES if span[1] == stop]
    assert 0 <= cut[0] + keep - start < CHUNK  # of the piece that was under way the client gives nothing


def test_every_range_may_be_cut_several_times(place: Place, tmp_path: Path) -> None:
    place.direct.create("x", DATA)
    fault = place.proxy.add(Fault(Kind.CUT, OBJECT, times=12, keep=17_000))
    assert place.bring(tmp_path, "x") == [DATA]
    assert fault.fired == 12


@pytest.mark.parametrize("kind", [Kind.REFUSE, Kind.ERROR_AFTER, Kind.RESET_AFTER])
def test_a_call_that_fails_is_made_again(place: Place, tmp_path: Path, kind: Kind) -> None:
    place.direct.create("x", DATA)
    place.proxy.add(Fault(kind, OBJECT, nth=3))
    assert place.bring(tmp_path, "x") == [DATA]


def test_a_bucket_that_is_gone_is_given_up_soon(place: Place, tmp_path: Path) -> None:
    place.direct.create("x", DATA)
    entry, pauses = place.entry("x"), list[float]()
    place.proxy.down()
    with pytest.raises(Temporary):
        place.bring_entries(tmp_path, [entry], pauses.append)
    assert len(pauses) <= 3 * len(RANGES)


def test_an_object_that_is_replaced_before_or_in_the_middle_is_never_mixed(place: Place, tmp_path: Path) -> None:
    place.direct.create("x", DATA)
    entry = place.entry("x")
    replaced = threading.Event()

    def replace(_: float) -> None:
        if not replaced.is_set():
            replaced.set()
            place.direct.swap("x", DATA[::-1], entry.version)

    place.proxy.add(Fault(Kind.CUT, OBJECT, nth=2, keep=100))  # the pause after it is when the object changes
    with pytest.raises(Conflict, match="changed while it was read"):
        place.bring_entries(tmp_path, [entry], replace)
    assert replaced.is_set()
    (tmp_path / "copy-0").unlink()
    with pytest.raises(Conflict, match="changed while it was read"):
        place.bring_entries(tmp_path, [entry])
    assert place.bring_entries(tmp_path / "..", []) == []


def test_thousands_of_small_objects_cost_one_call_each(place: Place, tmp_path: Path) -> None:
    paths = [f"{number:03}" for number in range(100)]
    for path in paths:
        place.direct.create(path, path.encode() * 10)
    assert place.bring(tmp_path, *paths) == [path.encode() * 10 for path in paths]
    assert len([call for call in place.proxy.calls if call.span or call.path.startswith("/aegis")]) == 100


def test_bytes_that_were_damaged_on_their_way_are_noticed(place: Place, tmp_path: Path) -> None:
    place.direct.create("x", DATA)
    entry = place.entry("x")
    wrong = Entry(entry.path, entry.size, entry.version, entry.checksum[:-1] + "0f"[entry.checksum.endswith("0")])
    with pytest.raises(Temporary, match="damaged"):
        place.bring_entries(tmp_path, [wrong])


def test_an_object_of_several_parts_is_held_to_its_own_full_checksum(
    s3: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"s3://{BUCKET}/parts", env=s3)
    client = store._client  # type: ignore[attr-defined]
    place = {"Bucket": BUCKET, "Key": "parts/x"}
    upload = client.create_multipart_upload(**place)["UploadId"]
    part = client.upload_part(**place, UploadId=upload, PartNumber=1, Body=DATA)["ETag"]
    parts = {"Parts": [{"ETag": part, "PartNumber": 1}]}
    client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload=parts)
    [entry] = store.list()
    assert entry.checksum == ""
    honest, sums = client.head_object, {"right": zlib.crc32(DATA), "wrong": 1}
    for name, value in sums.items():
        said = {"ChecksumCRC32": base64.b64encode(value.to_bytes(4, "big")).decode(), "ChecksumType": "FULL_OBJECT"}
        monkeypatch.setattr(client, "head_object", lambda said=said, **arguments: honest(**arguments) | said)
        if name == "wrong":
            with pytest.raises(Temporary, match=r"damaged \(crc32\)"):
                store.download("x", tmp_path / name, limit=1 << 20)
        else:
            store.download("x", tmp_path / name, limit=1 << 20)
            assert (tmp_path / name).read_bytes() == DATA


@pytest.mark.parametrize(("encryption", "good"), [("AES256", False), ("aws:kms", True)])
def test_an_etag_is_no_md5_where_the_bucket_encrypts_with_a_key_of_its_owner(
    s3: Mapping[str, str], tmp_path: Path, encryption: str, good: bool
) -> None:
    store = open_store(f"s3://{BUCKET}/{encryption[-3:]}", env=s3)
    client = store._client  # type: ignore[attr-defined]
    client.put_object(Bucket=BUCKET, Key=f"{encryption[-3:]}/x", Body=DATA, ServerSideEncryption=encryption)
    [entry] = store.list()
    other = replace(entry, checksum=f"md5:{'0' * 32}")
    with nullcontext() if good else pytest.raises(Temporary, match="damaged"):
        list(store.bring([(other, tmp_path / "copy")]))


# --- without a bucket


def job(tmp_path: Path, part: Callable[[int, int, Sink], None], size: int = 10, name: str = "t") -> Job:
    return Job("thing", size, tmp_path / name, part)


def test_a_source_that_gives_more_or_less_than_asked_is_given_up(tmp_path: Path) -> None:
    def more(start: int, stop: int, sink: Sink) -> None:
        sink.write(b"x" * (stop - start + 1))

    def less(_start: int, _stop: int, _sink: Sink) -> None:
        return

    for number, (part, told) in enumerate(((more, "more came"), (less, "ended early"))):
        with pytest.raises(Temporary, match=told):
            list(transfer.bring([job(tmp_path, part, name=str(number))], pause=lambda _: None))


def test_a_source_that_gives_a_byte_at_a_time_is_given_up_too(tmp_path: Path) -> None:
    calls = list[int]()

    def slow(start: int, _stop: int, sink: Sink) -> None:
        calls.append(start)
        sink.write(b"x")

    with pytest.raises(Temporary, match="ended early"):
        list(transfer.bring([job(tmp_path, slow, 1000)], pause=lambda _: None))
    assert len(calls) == transfer.CUTS


def test_an_error_that_will_not_pass_ends_everything_at_once(tmp_path: Path) -> None:
    started = threading.Event()

    def endless(_start: int, _stop: int, sink: Sink) -> None:
        started.set()
        while True:
            sink.write(b"")

    def refused(_start: int, _stop: int, _sink: Sink) -> None:
        started.wait(30)
        raise Permanent("the bucket refuses")

    with pytest.raises(Permanent, match="refuses"):
        list(transfer.bring([job(tmp_path, refused), job(tmp_path, endless, name="u")]))


def test_files_are_given_one_by_one_and_leaving_early_ends_the_rest(tmp_path: Path) -> None:
    given = threading.Event()

    def part(start: int, stop: int, sink: Sink) -> None:
        sink.write(b"x" * (stop - start))

    def waits(_start: int, _stop: int, sink: Sink) -> None:
        assert given.wait(30)
        while True:
            sink.write(b"")

    with closing(transfer.bring([job(tmp_path, part), job(tmp_path, waits, name="u")])) as files:
        next(files)
        given.set()
        assert (tmp_path / "t").read_bytes() == b"x" * 10


def test_a_target_that_exists_or_cannot_be_written_is_a_temporary_fault(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("mine")
    with pytest.raises(Temporary, match="cannot be written"):
        list(transfer.bring([job(tmp_path, lambda *_: None)]))
    assert (tmp_path / "t").read_text() == "mine"


def test_a_full_disk_is_a_temporary_fault_and_not_the_buckets(place: Place, tmp_path: Path) -> None:
    place.direct.create("x", DATA)
    entry, limits = place.entry("x"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PART, limits[1]))
    try:
        with pytest.raises(Temporary, match="cannot be written"):
            place.bring_entries(tmp_path, [entry])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_is_gone_has_changed(tmp_path: Path) -> None:
    def gone(_start: int, _stop: int, _sink: Sink) -> None:
        raise NotFound("not there")

    with pytest.raises(Conflict, match="changed while it was read"):
        list(transfer.bring([job(tmp_path, gone)]))


def test_progress_is_said_every_five_seconds_and_not_for_what_is_fast() -> None:
    now, said = [0.0], list[str]()
    progress = transfer.Progress(10_000_000, said.append, lambda: now[0])
    for second in range(13):
        now[0] = float(second)
        progress.add(500_000)
    assert said == ["downloaded 3 of 10 MB", "downloaded 6 of 10 MB"]
