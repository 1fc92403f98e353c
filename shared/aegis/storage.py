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
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from aegis.errors import AlreadyExists, Conflict, NotFound, Permanent, Temporary

MAX_ENTRIES = 10_000  # a listing that is longer is a wrong URI more often than a data set
CHUNK = 1 << 20
CONNECT, READ, ATTEMPTS = 10, 60, 4  # seconds, seconds, tries: a dead endpoint is known in minutes
_OURS = ".aegis-"  # lock and temporary files of the folder store; no path may use the name
_URI = re.compile(r"(file|gs|s3)://([A-Za-z0-9._-]*)(/.*)?", re.DOTALL)
_SEGMENT = re.compile(r"[A-Za-z0-9 ._=+@,~-]{1,255}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: path below the store's root, size in bytes, and a version that changes with the content."""

    path: str
    size: int
    version: str


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
        """Stream the object into the new file `target`; errors as `read`."""

    def create(self, path: str, source: bytes | Path) -> None:
        """Write where nothing is; AlreadyExists otherwise."""

    def swap(self, path: str, data: bytes, expected: str | None) -> str:
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
    """Whole objects from the chunks that an adapter gives."""

    def chunks(self, path: str, limit: int) -> Iterator[bytes]:
        """The object piece by piece, checked; errors as `Store.read`."""

    def read(self, path: str, *, limit: int) -> bytes:
        return b"".join(self.chunks(path, limit))

    def download(self, path: str, target: Path, *, limit: int) -> None:
        try:
            with target.open("xb") as file:
                for chunk in self.chunks(path, limit):
                    file.write(chunk)
        except OSError as error:
            raise Temporary(f"{target} cannot be written: {error.strerror}") from error


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

    def swap(self, path: str, data: bytes, expected: str | None) -> str:
        target = self.root / _check(path)
        with self._errors(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            with (target.parent / f"{_OURS}lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                found = self.head(path)
                if (found.version if found else None) != expected:
                    raise Conflict(f"{target} was changed by somebody else")
                self._write(target, data).replace(target)
                _flush(target.parent)
        return hashlib.sha256(data).hexdigest()

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
            return _few((Entry(p, b.size, str(b.generation)) for p, b in found if p), self.uri)

    def head(self, path: str) -> Entry | None:
        blob = self._find(path)
        return Entry(path, blob.size, str(blob.generation)) if blob is not None else None

    def create(self, path: str, source: bytes | Path) -> None:
        self._put(path, source, 0, AlreadyExists)

    def swap(self, path: str, data: bytes, expected: str | None) -> str:
        if expected is not None and not expected.isdecimal():
            raise Conflict(f"{self.uri}{path} never had the version {expected[:80]!r}")
        return self._put(path, data, int(expected or 0), Conflict)

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

    @contextmanager
    def _errors(self, path: str, lost: type[Exception] = Conflict) -> Iterator[None]:
        import requests
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
        except (requests.ConnectionError, requests.Timeout, auth.TransportError) as error:
            raise Temporary(f"{what}: the bucket cannot be reached ({type(error).__name__})") from error
        except (api.ClientError, auth.GoogleAuthError, ValueError, OSError) as error:
            raise Permanent(f"{what}: the bucket refuses ({type(error).__name__})") from error


class S3Store(_Bucket):
    """An S3 bucket or what speaks its protocol. A version is the ETag; an MD5 one is checked."""

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

    def list(self) -> list[Entry]:
        pages = self._client.get_paginator("list_objects_v2")
        with self._errors(""):
            pages = pages.paginate(Bucket=self.bucket, Prefix=self.root)
            found = ((self.named(item["Key"]), item) for page in pages for item in page.get("Contents", ()))
            return _few((Entry(p, i["Size"], i["ETag"].strip('"')) for p, i in found if p), self.uri)

    def head(self, path: str) -> Entry | None:
        try:
            with self._errors(path):
                answer = self._client.head_object(Bucket=self.bucket, Key=self.key(path))
        except NotFound:
            return None
        return Entry(path, answer["ContentLength"], answer["ETag"].strip('"'))

    def create(self, path: str, source: bytes | Path) -> None:
        if isinstance(source, bytes):
            self._put(path, source, AlreadyExists, IfNoneMatch="*")
        else:
            with source.open("rb") as file:
                self._put(path, file, AlreadyExists, IfNoneMatch="*")

    def swap(self, path: str, data: bytes, expected: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": f'"{expected}"'}
        return self._put(path, data, Conflict, **condition)

    def _put(self, path: str, body: bytes | BinaryIO, lost: type[Exception], **condition: str) -> str:
        with self._errors(path, lost):
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
        etag = answer["ETag"].strip('"')
        hidden = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
        if re.fullmatch(r"[0-9a-f]{32}", etag) and not hidden and seen.hexdigest() != etag:
            raise Temporary(f"{self.uri}{path} arrived damaged (md5)")

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
