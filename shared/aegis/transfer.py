"""Objects into files: byte ranges in parallel, each taken up again where it was cut, every file checked in the end.

It knows no bucket: a `Job` brings the call that reads a range. Workers fill the files while the caller's thread hashes
what has come, in order, so that a checksum costs no time of its own.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aegis.errors import Conflict, NotFound, Permanent, Temporary

WORKERS = 8
"""Calls at once. Few enough for the ten connections that both clients keep open by themselves."""
PART = 8 << 20
"""A range in bytes: what a kill or a cut costs at most, and large enough that asking for it costs nothing."""
TRIES, CUTS = 4, 64
"""Calls in a row that bring nothing, and calls that end early, before a range is given up for this attempt."""
EVERY = 5.0
BUFFER = 1 << 20


class Sink(Protocol):
    """Where a range's bytes go."""

    def write(self, data: bytes, /) -> int: ...


class Hash(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Job:
    """One object: `part(start, stop, sink)` writes its bytes from `start` up to `stop` into `sink` and raises what it
    likes of `aegis.errors`. `right` judges the whole by its digest of `algorithm`, in hex (empty: sha256)."""

    what: str
    size: int
    target: Path
    part: Callable[[int, int, Sink], None]
    algorithm: str = ""
    right: Callable[[str], bool] = lambda _: True


@dataclass(slots=True)
class Progress:
    """Says every five seconds how far a download is; one that ends before says nothing. Safe in threads."""

    total: int
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    next: float = 0.0

    def __post_init__(self) -> None:
        self.next = self.clock() + EVERY

    def add(self, count: int) -> None:
        """So many bytes have come."""
        with self.lock:
            self.done += count
            if self.clock() < self.next:
                return
            self.next = self.clock() + EVERY
        self.say(f"downloaded {self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB")


class _Crc32:
    def __init__(self) -> None:
        self.value = 0

    def update(self, data: bytes, /) -> None:
        self.value = zlib.crc32(data, self.value)

    def digest(self) -> bytes:
        return self.value.to_bytes(4, "big")


def _hash(algorithm: str) -> Hash:
    if algorithm == "crc32c":
        import google_crc32c

        found: Hash = google_crc32c.Checksum()
        return found
    return _Crc32() if algorithm == "crc32" else hashlib.new(algorithm, usedforsecurity=False)


class _Place:
    """A place in a file. Takes no byte beyond `stop`, and none once the download was given up."""

    def __init__(self, descriptor: int, start: int, stop: int, given_up: threading.Event, progress: Progress) -> None:
        self.descriptor, self.at, self.stop, self.given_up, self.progress = descriptor, start, stop, given_up, progress
        self.held = bytearray()

    def write(self, data: bytes, /) -> int:
        if self.given_up.is_set():
            raise Temporary("the download was given up")
        if self.at + len(self.held) + len(data) > self.stop:
            raise Temporary("more came than was asked for")
        self.held += data
        if len(self.held) >= BUFFER:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """What came before a cut is kept."""
        try:
            count = os.pwrite(self.descriptor, self.held, self.at)
        except OSError as error:  # a full disk; among the client's own errors it would look like the bucket's
            raise Temporary(f"a file cannot be written: {error.strerror}") from error
        self.at += count
        del self.held[:count]
        self.progress.add(count)


def bring(
    jobs: Sequence[Job], say: Callable[[str], None] = lambda _: None, pause: Callable[[float], object] | None = None
) -> Generator[str, None, None]:
    """Fill each job's target, a new file; its sha256, in order, each as soon as the file is complete and checked.

    `Conflict`: the object changed in between; `Temporary`: it cannot be had now, or arrived damaged. Close the iterator
    if you leave it early (`contextlib.closing`): calls still under way are then given up.
    """
    given_up = threading.Event()
    progress = Progress(sum(job.size for job in jobs), say)

    def part(job: Job, start: int) -> None:
        with job.target.open("r+b", buffering=0) as file:
            place = _Place(file.fileno(), start, min(start + PART, job.size), given_up, progress)
            _fill(job, place, pause or given_up.wait)

    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="transfer")
    try:
        pending = [[pool.submit(part, job, start) for start in range(0, job.size, PART)] for job in _made(jobs)]
        for job, parts in zip(jobs, pending, strict=True):
            yield _checked(job, parts)
    except OSError as error:
        raise Temporary(f"a file cannot be written: {error.strerror}") from error
    finally:
        given_up.set()
        pool.shutdown(cancel_futures=True)


def _made(jobs: Sequence[Job]) -> Sequence[Job]:
    for job in jobs:
        job.target.open("xb").close()
    return jobs


def _fill(job: Job, place: _Place, pause: Callable[[float], object]) -> None:
    idle = 0
    for _ in range(CUTS):
        before, problem = place.at, None
        try:
            job.part(place.at, place.stop, place)
        except (Conflict, NotFound) as error:
            raise Conflict(f"{job.what} changed while it was read") from error
        except Temporary as error:
            problem = error
        place.flush()
        if place.at == place.stop:
            if problem:  # the client itself found it damaged
                raise problem
            return
        idle = 0 if place.at > before else idle + 1
        if idle == TRIES or place.given_up.is_set():
            break
        pause(min(0.2 * 2**idle, 5.0))
    raise problem or Temporary(f"{job.what} ended early")


def _checked(job: Job, parts: Sequence[Future[None]]) -> str:
    """Hash each part as it comes."""
    sha256 = hashlib.sha256()
    named = _hash(job.algorithm) if job.algorithm not in ("", "sha256") else sha256
    with job.target.open("rb", buffering=0) as file:
        for number, done in enumerate(parts):
            done.result()
            stop = min((number + 1) * PART, job.size)
            for start in range(number * PART, stop, BUFFER):
                chunk = file.read(min(BUFFER, stop - start))
                sha256.update(chunk)
                if named is not sha256:
                    named.update(chunk)
        if file.tell() != job.size:
            raise Permanent(f"{job.target} was changed by somebody else")
    if not job.right(named.digest().hex()):
        raise Temporary(f"{job.what} changed while it was read, or arrived damaged ({job.algorithm})")
    return sha256.hexdigest()
