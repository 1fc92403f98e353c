"""One small port over a folder, a Google bucket and an S3 bucket.

A store is rooted at a URI; paths below it are plain relative names. Writes are create-only or compare-and-set
as several processes may write. Every call is bounded in time and in bytes. Not a cache, not a file system,
and no place for policy: the caller asks `allowed` who may read what.

Foreign errors become `Permanent` (missing, refused, malformed) or `Temporary` (network, throttling, 5xx). A
write whose answer was lost may show as `Conflict` or `AlreadyExists` though it was ours: read again, compare.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from aegis import transfer
from aegis.errors import AlreadyExists, Conflict, NotFound, Permanent, Temporary
from aegis.transfer import Job, Sink

MAX_ENTRIES = 100_000  # a listing that is longer is a wrong URI more often than a folder of images
CHUNK = 1 << 20
CONNECT, READ, ATTEMPTS = 10, 60, 4  # seconds, seconds, tries: a dead endpoint is known in minutes
_OURS = ".aegis-"  # lock and temporary files of the folder store; no path may use the name
_URI = re.compile(r"(file|gs|s3)://([A-Za-z0-9._-]*)(/.*)?", re.DOTALL)
_SEGMENT = re.compile(r"[A-Za-z0-9 ._=+@,~-]{1,255}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: path below the store's root, size in bytes, a version that changes with the content, and what the
    bucket announced of the bytes (`crc32c:` or `md5:` and the digest in hex), if anything."""

    path: str
    size: int
    version: str
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Location:
    """A URI taken apart. `bucket` is empty for file://; `segments` holds no '..', no empty name."""

    scheme: str
    bucket: str
    segments: tuple[str, ...]

    @classmethod
    def parse(cls, uri: str) -> Location:
        """Read file:///dir, gs://bucket/prefix or s3://bucket/prefix; anything else is Permanent."""
        match = _URI.fullmatch(uri)
        path = (match[3] or "").removeprefix("/").removesuffix("/") if match else ""
        segments = tuple(path.split("/"))
        segments = segments if path else ()
        if match is None or bool(match[2]) == (match[1] == "file") or not all(map(_plain, segments)):
            raise Permanent(f"not a plain file:///, gs:// or s3:// URI: {uri[:200]!r}")
        return cls(match[1], match[2], segments)


class Store(Protocol):
    """What every store can do. Paths are relative; a path that is not plain is Permanent."""

    def list(self) -> list[Entry]:
        """All objects, sorted by path; more than MAX_ENTRIES is Permanent."""

    def head(self, path: str) -> Entry | None:
        """The object's entry, or None where there is none."""

    def read(self, path: str, *, limit: int) -> bytes:
        """The whole object; NotFound, or Permanent above `limit` bytes."""

    def download(self, path: str, target: Path, *, limit: int) -> None:
        """The object into the new file `target`, in parallel ranges of one version; errors as `read` and `bring`."""

    def bring(
        self,
        wanted: Sequence[tuple[Entry, Path]],
        say: Callable[[str], None] = lambda _: None,
        pause: Callable[[float], object] | None = None,
    ) -> Generator[str, None, None]:
        """The objects, each in its entry's version, into new files; errors and results as of `transfer.bring`."""

    def create(self, path: str, source: bytes | Path) -> None:
        """Write where nothing is; AlreadyExists otherwise."""

    def swap(self, path: str, source: bytes | Path, expected: str | None) -> str:
        """Write if the version still is `expected` (None: nothing is there); the new version, or Conflict."""


def open_store(uri: str, *, env: Mapping[str, str]) -> Store:
    """The store rooted at `uri`. Clients are imported on first use; endpoints and keys come from `env`."""
    location = Location.parse(uri)
    match location.scheme:
        case "file":
            return FileStore(Path("/", *location.segments))
        case "gs":
            return GcsStore(location, env)
        case _:
            return S3Store(location, env)


def _plain(segment: str) -> bool:
    return bool(_SEGMENT.fullmatch(segment)) and segment not in (".", "..") and not segment.startswith(_OURS)


def _check(path: str) -> str:
    if not all(map(_plain, path.split("/"))) or len(path) > 900:
        raise Permanent(f"not a plain relative path: {path[:200]!r}")
    return path


def _bounded(chunks: Iterable[bytes], limit: int, what: str) -> Iterator[bytes]:
    seen = 0
    for chunk in chunks:
        seen += len(chunk)
        if seen > limit:
            raise Permanent(f"{what} is larger than the {limit:,} bytes allowed")
        yield chunk


class _Reading(Protocol):
    """Whole objects from the chunks and ranges that an adapter gives."""

    uri: str

    def head(self, path: str) -> Entry | None: ...

    def chunks(self, path: str, limit: int) -> Iterator[bytes]:
        """The object piece by piece, checked; errors as `Store.read`."""

    def part(self, entry: Entry, start: int, stop: int, sink: Sink) -> None:
        """Write the entry's bytes from `start` up to `stop`; Conflict or NotFound if it is no longer that version."""

    def announced(self, entry: Entry) -> str:
        """`Entry.checksum`, or what the bucket says when asked for this one object."""
        return entry.checksum

    def right(self, path: str, announced: str, digest: str) -> bool:  # noqa: ARG002 - S3 has to know which object
        """Whether bytes with this checksum are the ones announced."""
        return not announced or digest == announced.partition(":")[2]

    def read(self, path: str, *, limit: int) -> bytes:
        return b"".join(self.chunks(path, limit))

    def download(self, path: str, target: Path, *, limit: int) -> None:
        entry = self.head(path)
        if entry is None:
            raise NotFound(f"{self.uri}{path} is not there")
        _bounded_size(entry.size, limit, self.uri + path)
        list(self.bring([(entry, target)]))

    def bring(
        self,
        wanted: Sequence[tuple[Entry, Path]],
        say: Callable[[str], None] = lambda _: None,
        pause: Callable[[float], object] | None = None,
    ) -> Generator[str, None, None]:
        jobs = []
        for entry, target in wanted:
            said, what = self.announced(entry), self.uri + _check(entry.path)
            right = partial(self.right, entry.path, said)
            jobs.append(Job(what, entry.size, target, partial(self.part, entry), said.partition(":")[0], right))
        return transfer.bring(jobs, say, pause)


def _few(entries: Iterator[Entry], what: str) -> list[Entry]:
    found: list[Entry] = []
    for entry in entries:
        if len(found) == MAX_ENTRIES:
            raise Permanent(f"more than {MAX_ENTRIES:,} objects below {what}")
        found.append(entry)
    return sorted(found, key=lambda entry: entry.path)


class FileStore(_Reading):
    """A folder. An object's version is the sha256 of its bytes; links and special files are not seen."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = f"{root}/"

    def list(self) -> list[Entry]:
        with self._errors(str(self.root)):
            return _few(self._walk(), str(self.root))

    def head(self, path: str) -> Entry | None:
        _check(path)
        try:
            with self._open(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                return Entry(path, os.fstat(file.fileno()).st_size, digest)
        except NotFound:
            return None

    def create(self, path: str, source: bytes | Path) -> None:
        target = self.root / _check(path)
        with self._errors(str(target)):
            temporary = self._write(target, source)
            try:
                os.link(temporary, target)  # unlike a rename, this never replaces what is there
            except FileExistsError as error:
                raise AlreadyExists(f"{target} exists already") from error
            finally:
                temporary.unlink()
            _flush(target.parent)

    def swap(self, path: str, source: bytes | Path, expected: str | None) -> str:
        target = self.root / _check(path)
        with self._errors(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            with (target.parent / f"{_OURS}lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                found = self.head(path)
                if (found.version if found else None) != expected:
                    raise Conflict(f"{target} was changed by somebody else")
                temporary = self._write(target, source)
                with temporary.open("rb") as file:
                    version = hashlib.file_digest(file, "sha256").hexdigest()
                temporary.replace(target)
                _flush(target.parent)
        return version

    def _walk(self) -> Iterator[Entry]:
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                if not name.startswith(_OURS) and stat.S_ISREG(path.lstat().st_mode):
                    entry = self.head(path.relative_to(self.root).as_posix())
                    if entry is not None:  # None: it went away between the two looks
                        yield entry

    def chunks(self, path: str, limit: int) -> Iterator[bytes]:
        with self._open(_check(path)) as file:
            yield from _bounded(iter(lambda: file.read(CHUNK), b""), limit, path)

    def part(self, entry: Entry, start: int, stop: int, sink: Sink) -> None:
        with self._open(entry.path) as file:
            if os.fstat(file.fileno()).st_size != entry.size:
                raise Conflict(f"{self.uri}{entry.path} changed while it was read")
            file.seek(start)
            while start < stop and (chunk := file.read(min(CHUNK, stop - start))):
                start += sink.write(chunk)

    def announced(self, entry: Entry) -> str:
        return f"sha256:{entry.version}"

    @contextmanager
    def _open(self, path: str) -> Iterator[BufferedReader]:
        target = self.root / path
        with self._errors(str(target)):
            descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no path
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise NotFound(f"{target} is not a regular file")
                yield file

    @staticmethod
    def _write(target: Path, source: bytes | Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{_OURS}{secrets.token_hex(8)}"
        with temporary.open("xb") as file:
            if isinstance(source, bytes):
                file.write(source)
            else:
                with source.open("rb") as origin:
                    for chunk in iter(lambda: origin.read(CHUNK), b""):
                        file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    @staticmethod
    @contextmanager
    def _errors(what: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound(f"{what} is not there") from error
        except PermissionError as error:
            raise Permanent(f"{what} may not be read or written: {error.strerror}") from error
        except OSError as error:
            raise Temporary(f"{what}: {error.strerror}") from error


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Bucket(_Reading):
    """What both buckets share: names. A key is the root's segments and the path."""

    def __init__(self, location: Location) -> None:
        self.bucket = location.bucket
        self.root = "".join(f"{segment}/" for segment in location.segments)
        self.uri = f"{location.scheme}://{location.bucket}/{self.root}"

    def key(self, path: str) -> str:
        return self.root + _check(path)

    def named(self, key: str) -> str | None:
        """The path of a key; None for a folder's placeholder or a name that no store of ours would take."""
        path = key[len(self.root) :]
        return path if all(map(_plain, path.split("/"))) else None


class GcsStore(_Bucket):
    """A Google Cloud Storage bucket. A version is the generation; crc32c is checked on what arrived."""

    def __init__(self, location: Location, env: Mapping[str, str]) -> None:
        super().__init__(location)
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage
        from google.cloud.storage.retry import DEFAULT_RETRY

        emulator = env.get("STORAGE_EMULATOR_HOST", "")
        key_file = env.get("GOOGLE_APPLICATION_CREDENTIALS", "")
        options: dict[str, Any] = {"project": env.get("GOOGLE_CLOUD_PROJECT") or "-"}  # objects need none
        if emulator:
            endpoint = emulator if "://" in emulator else f"http://{emulator}"
            options |= {"credentials": AnonymousCredentials(), "client_options": {"api_endpoint": endpoint}}
        with self._errors("sign-in"):
            client = (
                storage.Client.from_service_account_json(key_file, **options)
                if key_file and not emulator
                else storage.Client(**options)
            )
        self._objects = client.bucket(location.bucket)
        self._client = client
        self._bounds = {"timeout": (CONNECT, READ), "retry": DEFAULT_RETRY.with_timeout(CONNECT + READ)}

    def list(self) -> list[Entry]:
        with self._errors(""):
            blobs = self._client.list_blobs(self._objects, prefix=self.root, **self._bounds)
            found = ((self.named(blob.name), blob) for blob in blobs)
            return _few((_entry(p, b) for p, b in found if p), self.uri)

    def head(self, path: str) -> Entry | None:
        blob = self._find(path)
        return _entry(path, blob) if blob is not None else None

    def create(self, path: str, source: bytes | Path) -> None:
        self._put(path, source, 0, AlreadyExists)

    def swap(self, path: str, source: bytes | Path, expected: str | None) -> str:
        if expected is not None and not expected.isdecimal():
            raise Conflict(f"{self.uri}{path} never had the version {expected[:80]!r}")
        return self._put(path, source, int(expected or 0), Conflict)

    def _put(self, path: str, source: bytes | Path, generation: int, lost: type[Exception]) -> str:
        blob = self._objects.blob(self.key(path))
        bounds = self._bounds | {"if_generation_match": generation, "checksum": "crc32c"}
        with self._errors(path, lost):
            if isinstance(source, bytes):
                blob.upload_from_string(source, "application/octet-stream", **bounds)
            else:
                blob.upload_from_filename(str(source), "application/octet-stream", **bounds)
        return str(blob.generation)

    def _find(self, path: str) -> Any:
        with self._errors(path):
            return self._objects.get_blob(self.key(path), **self._bounds)

    def chunks(self, path: str, limit: int) -> Iterator[bytes]:
        import google_crc32c

        blob = self._find(path)
        if blob is None:
            raise NotFound(f"{self.uri}{path} is not there")
        _bounded_size(blob.size, limit, self.uri + path)
        announced = blob.crc32c
        # Raw: an object stored with gzip encoding would grow on its way. Pinned: it cannot change either.
        pinned = {"raw_download": True, "if_generation_match": blob.generation, **self._bounds}
        seen = google_crc32c.Checksum()
        with self._errors(path), blob.open("rb", chunk_size=16 * CHUNK, **pinned) as file:
            for chunk in _bounded(iter(lambda: file.read(CHUNK), b""), limit, self.uri + path):
                seen.update(chunk)
                yield chunk
        if announced and base64.b64encode(seen.digest()).decode() != announced:
            raise Temporary(f"{self.uri}{path} arrived damaged (crc32c)")

    def part(self, entry: Entry, start: int, stop: int, sink: Sink) -> None:
        from google.api_core.exceptions import from_http_response

        # The client's own session, but not its download: that copies eight KiB at a time, which halves the speed.
        # Accept-Encoding: the bytes as they are stored; Google would unpack an object of gzip on the way.
        url = (
            f"{self._client.api_endpoint}/download/storage/v1/b/{self.bucket}/o/{quote(self.key(entry.path), safe='')}"
        )
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "gzip"}
        pinned = {"alt": "media", "generation": entry.version}
        bounds = {"stream": True, "timeout": (CONNECT, READ)}
        with self._errors(entry.path), self._client._http.get(url, params=pinned, headers=headers, **bounds) as answer:
            if answer.status_code not in (200, 206):
                raise from_http_response(answer)
            for chunk in answer.raw.stream(CHUNK, decode_content=False):
                sink.write(chunk)

    @contextmanager
    def _errors(self, path: str, lost: type[Exception] = Conflict) -> Iterator[None]:
        import requests
        import urllib3
        from google.api_core import exceptions as api
        from google.auth import exceptions as auth

        what = self.uri + path
        try:
            yield
        except api.PreconditionFailed as error:
            raise lost(f"{what} was written by somebody else") from error
        except api.NotFound as error:
            raise NotFound(f"{what} is not there") from error
        except (api.TooManyRequests, api.ServerError, api.RetryError) as error:
            raise Temporary(f"{what}: the bucket does not answer ({type(error).__name__})") from error
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
            urllib3.exceptions.HTTPError,  # the answer's body is read past `requests`
            auth.TransportError,
        ) as error:
            raise Temporary(f"{what}: the bucket cannot be reached ({type(error).__name__})") from error
        except (api.ClientError, auth.GoogleAuthError, ValueError, OSError) as error:
            raise Permanent(f"{what}: the bucket refuses ({type(error).__name__})") from error


def _entry(path: str, blob: Any) -> Entry:
    crc32c = f"crc32c:{base64.b64decode(blob.crc32c).hex()}" if blob.crc32c else ""
    return Entry(path, blob.size, str(blob.generation), crc32c)


class S3Store(_Bucket):
    """An S3 bucket or what speaks its protocol. A version is the ETag; one that is an MD5 is checked, else the checksum
    of the whole object, if the bucket has it."""

    def __init__(self, location: Location, env: Mapping[str, str]) -> None:
        super().__init__(location)
        import boto3
        from botocore.config import Config

        names = {
            "aws_access_key_id": "AWS_ACCESS_KEY_ID",
            "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
            "aws_session_token": "AWS_SESSION_TOKEN",
            "region_name": "AWS_REGION",
        }
        given = {argument: env[name] for argument, name in names.items() if env.get(name)}
        given.setdefault("region_name", env.get("AWS_DEFAULT_REGION") or "us-east-1")
        endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None
        retries = {"total_max_attempts": ATTEMPTS, "mode": "standard"}
        bounds = Config(connect_timeout=CONNECT, read_timeout=READ, retries=retries)
        self._client: Any = boto3.session.Session(**given).client("s3", endpoint_url=endpoint, config=bounds)
        self._hidden = set[str]()  # paths whose ETag is 32 hex digits and yet no MD5, as the bucket encrypts them

    def list(self) -> list[Entry]:
        pages = self._client.get_paginator("list_objects_v2")
        with self._errors(""):
            pages = pages.paginate(Bucket=self.bucket, Prefix=self.root)
            found = ((self.named(item["Key"]), item) for page in pages for item in page.get("Contents", ()))
            return _few((_object(p, i["Size"], i["ETag"]) for p, i in found if p), self.uri)

    def head(self, path: str) -> Entry | None:
        try:
            with self._errors(path):
                answer = self._client.head_object(Bucket=self.bucket, Key=self.key(path))
        except NotFound:
            return None
        return _object(path, answer["ContentLength"], answer["ETag"])

    def create(self, path: str, source: bytes | Path) -> None:
        self._put(path, source, AlreadyExists, IfNoneMatch="*")

    def swap(self, path: str, source: bytes | Path, expected: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": f'"{expected}"'}
        return self._put(path, source, Conflict, **condition)

    def _put(self, path: str, source: bytes | Path, lost: type[Exception], **condition: str) -> str:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as body, self._errors(path, lost):
            answer = self._client.put_object(Bucket=self.bucket, Key=self.key(path), Body=body, **condition)
        return str(answer["ETag"]).strip('"')

    def chunks(self, path: str, limit: int) -> Iterator[bytes]:
        with self._errors(path):
            answer = self._client.get_object(Bucket=self.bucket, Key=self.key(path))
            _bounded_size(answer["ContentLength"], limit, self.uri + path)
            seen = hashlib.md5(usedforsecurity=False)
            for chunk in _bounded(answer["Body"].iter_chunks(CHUNK), limit, self.uri + path):
                seen.update(chunk)
                yield chunk
        self._note(path, answer)
        if not self.right(path, _object(path, 0, answer["ETag"]).checksum, seen.hexdigest()):
            raise Temporary(f"{self.uri}{path} arrived damaged (md5)")

    def part(self, entry: Entry, start: int, stop: int, sink: Sink) -> None:
        whole = (start, stop) == (0, entry.size)  # then the client checks the object's own checksum, if it has one
        span = {} if whole else {"Range": f"bytes={start}-{stop - 1}"}
        pinned = {"Bucket": self.bucket, "Key": self.key(entry.path), "IfMatch": f'"{entry.version}"'}
        with self._errors(entry.path):
            answer = self._client.get_object(**pinned, **span)
            self._note(entry.path, answer)
            with closing(answer["Body"]) as body:
                if answer["ContentLength"] != stop - start:
                    raise Permanent(f"{self.uri}{entry.path}: the bucket does not give ranges")
                for chunk in body.iter_chunks(CHUNK):
                    sink.write(chunk)

    def _note(self, path: str, answer: Mapping[str, Any]) -> None:
        if answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer:
            self._hidden.add(path)

    def announced(self, entry: Entry) -> str:
        if entry.checksum:
            return entry.checksum
        with self._errors(entry.path):
            said = self._client.head_object(Bucket=self.bucket, Key=self.key(entry.path), ChecksumMode="ENABLED")
        known = [(a, said[f"Checksum{a}"]) for a in ("CRC32C", "CRC32") if said.get(f"Checksum{a}")]
        if not known or said.get("ChecksumType") != "FULL_OBJECT":
            return ""  # a checksum of parts' checksums, whose sizes nobody knows
        return f"{known[0][0].lower()}:{base64.b64decode(known[0][1]).hex()}"

    def right(self, path: str, announced: str, digest: str) -> bool:
        return super().right(path, announced, digest) or (announced.startswith("md5:") and path in self._hidden)

    @contextmanager
    def _errors(self, path: str, lost: type[Exception] = Conflict) -> Iterator[None]:
        from botocore import exceptions as boto

        what = self.uri + path
        try:
            yield
        except boto.ClientError as error:
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            code = str(error.response.get("Error", {}).get("Code", ""))
            raise _answered(what, status, code, lost) from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ParamValidationError) as error:
            raise Permanent(f"{what}: the bucket cannot be asked ({type(error).__name__})") from error
        except (boto.BotoCoreError, OSError) as error:
            raise Temporary(f"{what}: the bucket cannot be reached ({type(error).__name__})") from error


def _object(path: str, size: int, etag: str) -> Entry:
    version = etag.strip('"')
    return Entry(path, size, version, f"md5:{version}" if re.fullmatch(r"[0-9a-f]{32}", version) else "")


def _answered(what: str, status: int, code: str, lost: type[Exception]) -> Exception:
    """What an S3 status means. 409 is a conditional write that ran into another one."""
    if status in (409, 412):
        return lost(f"{what} was written by somebody else")
    if status == 404:
        return NotFound(f"{what} is not there")
    if status in (408, 429) or status >= 500 or code in ("SlowDown", "RequestTimeout"):
        return Temporary(f"{what}: the bucket does not answer ({code or status})")
    return Permanent(f"{what}: the bucket refuses ({code or status})")


def _bounded_size(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise Permanent(f"{what} has {size:,} bytes, more than the {limit:,} allowed")
