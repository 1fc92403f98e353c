"""Check a signed model before it serves: a package in a folder, or the champion of a store.

`python -m sign_model.verify` is the init container of whatever serves a model: it follows the signed pointer, checks
signatures, provenance, the owner's policy and every byte, and only then lets the model appear at AEGIS_TARGET. It
needs no registry and never loads a model. Refused, it leaves nothing there, so nothing can be served.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aegis import datasets, manifest, package, pointer, signature
from aegis.errors import BAD_DATA, USAGE, NotFound, Permanent, Temporary
from aegis.names import NAME, SHA256
from aegis.package import Package
from aegis.signature import Keys, Untrusted
from aegis.step import Reader, run
from aegis.storage import Store, open_store

KIND = re.compile(r"[A-Za-z0-9._+-]{1,64}", re.ASCII)
_SERIAL = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a reader asks of a model whose signatures hold."""

    dataset_prefixes: tuple[str, ...] = ()
    """Every location of data in the provenance lies below one of these; empty: not asked."""
    kinds: frozenset[str] = frozenset()
    """What files there may be: suffixes in lower case (`.json`) or whole names (`MLmodel`); empty: any."""
    allow_pickle: bool = False
    """Accept files that run code when loaded. That the signer allowed them is no word for the reader."""

    def faults(self, held: Package) -> dict[str, str]:
        """What is wrong with a package, as far as its statements tell."""
        faults: dict[str, str] = {}
        if self.dataset_prefixes:
            if not held.datasets:
                faults["provenance"] = "names no dataset, so none can be below the required prefixes"
            for uri in held.datasets:
                if fault := datasets.fault(uri, self.dataset_prefixes):
                    faults[f"dataset {uri[:200]}"] = fault
        for path, _ in held.files:
            name, suffix = Path(path).name, Path(path).suffix.lower()
            if not self.allow_pickle and suffix in manifest.PICKLES:
                faults[path] = "pickle family by its name"
            elif self.kinds and not {name, suffix} & self.kinds:
                faults[path] = f"a kind of file that is not allowed ({', '.join(sorted(self.kinds))} are)"
        return faults

    def judge(self, directory: Path) -> None:
        """Refuse (76) unpacked files that run code when they are loaded, whatever they are called."""
        if not self.allow_pickle and (found := manifest.pickles(directory)):
            raise Refused("the model is refused", found)


class Refused(Untrusted):
    """The bytes are the signed ones, and not what the policy takes."""


ANY = Policy()
Option = tuple[str, Sequence[str]]


def policy_faults(prefixes: Option, kinds: Option) -> dict[str, str]:
    """What is wrong with a policy's two lists, each given with the name by which its owner knows it."""
    faults: dict[str, str] = {}
    if any(map(datasets.prefix_fault, prefixes[1])):
        faults[prefixes[0]] = "each must be s3://bucket/..., gs://bucket/... or, on one machine, file:///..."
    if not all(map(KIND.fullmatch, kinds[1])):
        faults[kinds[0]] = "must be suffixes or names of files, as .json or MLmodel"
    return faults


def verify_directory(
    directory: Path,
    keys: Keys,
    *,
    model: str | None = None,
    environment: str | None = None,
    pointer_file: Path | None = None,
    min_serial: int | None = None,
    target: Path | None = None,
    policy: Policy = ANY,
) -> list[str]:
    """Every fault of a package, as sentences; empty if it holds. Only then the model appears at `target`.

    Model and environment are checked where given. `min_serial` needs the pointer: only that has the serial. Without
    `allow_pickle` files are looked into, which takes room for the model among the temporary files. Raises Temporary
    where that, or `target`, can't be written.
    """
    faults: list[str] = []
    small: dict[str, bytes] = {}
    for name in package.SMALL:
        try:
            small[name] = _read(directory / name, signature.MAX_BUNDLE)
        except OSError as error:
            faults.append(f"{name}: {error.strerror}")
    held = None
    try:
        held = package.check(small, keys, tar_sha256=None, model=model, environment=environment)
    except Permanent as error:
        faults += [f"{name}: {what}" for name, what in error.faults.items() if what != "is missing"]
    if pointer_file is not None:
        try:
            found = pointer.unseal(_read(pointer_file, pointer.MAX_POINTER), keys)
        except (OSError, Permanent) as error:
            faults.append(f"pointer: {error.strerror if isinstance(error, OSError) else error}")
        else:
            if held and found.tar_sha256 != held.tar_sha256:
                faults.append(f"pointer: names package {found.tar_sha256}")
            if held and (found.environment, found.model) != (held.environment, held.model):
                faults.append(f"pointer: is for {found.environment}/{found.model}")
            if min_serial is not None and found.serial < min_serial:
                faults.append(f"pointer: serial {found.serial} is older than {min_serial}")
    elif min_serial is not None:
        faults.append("pointer: missing, so its serial is unknown")
    if held:
        refused = policy.faults(held)
        refused |= _bytes(directory / package.TAR, held, None if faults or refused else target, policy)
        faults += [f"{name}: {what}" for name, what in refused.items()]
    return faults


def _bytes(path: Path, held: Package, target: Path | None, policy: Policy) -> dict[str, str]:
    """What is wrong with an archive's bytes; if nothing is, they are at `target`."""
    try:
        with os.fdopen(_open(path), "rb") as tar, tempfile.TemporaryDirectory() as scratch:
            if target is None and not policy.allow_pickle:
                target = Path(scratch) / "model"
            manifest.unpack(tar, held.files, held.tar_sha256, target, policy.judge)
    except OSError as error:
        return {path.name: str(error.strerror)}
    except Refused as error:
        return error.faults
    except Permanent as error:
        return {path.name: str(error)}
    return {}


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return descriptor


def _read(path: Path, limit: int) -> bytes:
    with os.fdopen(_open(path), "rb") as stream:
        return stream.read(limit + 1)


# --- the init container -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """What serves, from where to where, and what is asked of it."""

    model: str
    """AEGIS_MODEL."""
    environment: str
    """AEGIS_ENVIRONMENT."""
    models_uri: str
    """AEGIS_MODELS_URI: `file://`, `gs://` or `s3://`. Reading is enough: nothing is written there."""
    trusted_keys: Path
    """AEGIS_TRUSTED_KEYS, a PEM file or a folder of `*.pub`."""
    target: Path
    """AEGIS_TARGET: a folder that is made, below a volume's mount; its signature comes beside it, as <target>.sig."""
    pinned: str
    """AEGIS_PACKAGE: the sha256 of one archive, to serve that and nothing else. Empty: what the pointer names."""
    min_serial: int
    """AEGIS_MIN_SERIAL: the oldest pointer that is taken. 0: any, as long as it is signed; a copy of an old one is."""
    policy: Policy
    """AEGIS_REQUIRED_DATASET_PREFIXES and AEGIS_ALLOWED_KINDS, lists with commas; AEGIS_ALLOW_PICKLE=true."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read and check all of it; `Permanent` (64) names every fault."""
        read = Reader(env)
        target = Path(read.text("AEGIS_TARGET"))
        if not target.is_absolute() or ".." in target.parts or not target.name:
            read.faults["AEGIS_TARGET"] = "must be an absolute path below a volume's mount"
        serial = read.text("AEGIS_MIN_SERIAL", _SERIAL, empty=True)
        pinned = read.text("AEGIS_PACKAGE", SHA256, empty=True)
        if serial and pinned:
            read.faults["AEGIS_MIN_SERIAL"] = "is the pointer's, which AEGIS_PACKAGE stands in for"
        model, environment = read.text("AEGIS_MODEL", NAME), read.text("AEGIS_ENVIRONMENT", NAME)
        uri, trusted = read.text("AEGIS_MODELS_URI"), Path(read.text("AEGIS_TRUSTED_KEYS"))
        lists = {name: _listed(env, name) for name in ("AEGIS_REQUIRED_DATASET_PREFIXES", "AEGIS_ALLOWED_KINDS")}
        read.faults.update(policy_faults(*lists.items()))
        read.check()
        prefixes, kinds = lists.values()
        policy = Policy(prefixes, frozenset(kinds), env.get("AEGIS_ALLOW_PICKLE") == "true")
        return cls(model, environment, uri, trusted, target, pinned, int(serial or 0), policy)


def _listed(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, env.get(name, "").split(","))))


def _body(env: Mapping[str, str]) -> str:
    settings = Settings.from_env(env)
    try:
        store, keys = open_store(settings.models_uri, env=env), signature.load_keys(settings.trusted_keys)
        with _emptied(settings.target) as work:
            held, serial = _accepted(settings, store, keys)
            with package.download(store, held, work).open("rb") as tar:
                manifest.unpack(tar, held.files, held.tar_sha256, work / "model", settings.policy.judge)
            signed = package.read_small(store, held.where)[package.MODEL_SIG]
            settings.target.with_name(f"{settings.target.name}.sig").write_bytes(signed)
            (work / "model").rename(settings.target)
    except Refused as error:
        raise Untrusted(error.message, error.faults) from error
    except Permanent as error:
        if error.exit_code != BAD_DATA:
            raise
        # What is not the package's fault is that of where it was looked for.
        raise Permanent(error.message, error.faults, exit_code=USAGE) from error
    told = f"pointer serial {serial}" if serial else "pinned"
    return f"{settings.environment}/{settings.model}: package {held.tar_sha256} ({told}) is at {settings.target}"


def _accepted(settings: Settings, store: Store, keys: Keys) -> tuple[Package, int]:
    """The package that may serve, as far as its small files tell, and the pointer's serial (0: pinned)."""
    environment, model, faults = settings.environment, settings.model, {}
    tar_sha256, root, serial = settings.pinned, None, 0
    if not tar_sha256:
        found = pointer.read(store, keys, environment, model)
        if found is None:
            raise Untrusted("nothing to serve", {"pointer": f"{environment}/{model} has no champion"})
        tar_sha256, root, serial = found[0].tar_sha256, found[0].root_digest, found[0].serial
        if serial < settings.min_serial:
            faults["pointer"] = f"serial {serial} is older than {settings.min_serial}"
    try:
        held = package.read(store, keys, environment, model, tar_sha256)
    except NotFound as error:
        raise Untrusted("the model is refused", faults | {"package": str(error)}) from error
    except Untrusted as error:
        raise Untrusted("the model is refused", faults | error.faults) from error
    if root not in {None, held.root_digest}:
        faults["root_digest"] = "is not the one that the pointer names"
    if faults := faults | settings.policy.faults(held):
        raise Untrusted("the model is refused", faults)
    return held, serial


@contextmanager
def _emptied(target: Path) -> Iterator[Path]:
    """A folder beside `target` to work in; `target` is gone then, and stays so unless a model is moved there.

    An init container may be killed at any point and is run again when its pod restarts, so what an earlier run left
    is removed. The folder stays as its mark: what somebody else put at `target` is not touched.
    """
    work, beside = target.with_name(f".aegis-{target.name}"), target.with_name(f"{target.name}.sig")
    try:
        ours = work.is_dir() or not target.exists() or (target.is_dir() and not any(target.iterdir()))
        if target.is_symlink() or not ours:
            raise Permanent("bad settings", {"AEGIS_TARGET": "is not empty, and no earlier run filled it"})
        work.mkdir(parents=True, exist_ok=True)
        for left in (target, beside, *work.iterdir()):
            _remove(left)
        try:
            yield work
        finally:
            for left in work.iterdir() if target.exists() else (beside, work):
                _remove(left)
    except OSError as error:
        told = f"{target} cannot be filled: {error.strerror}"
        if error.errno in _NO_PLACE:
            raise Permanent("bad settings", {"AEGIS_TARGET": told}, exit_code=USAGE) from error
        raise Temporary(told) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main(env: Mapping[str, str] = os.environ) -> int:
    """Entry point; exit codes in `aegis.errors`."""
    return run("verify", _body, env)


if __name__ == "__main__":
    sys.exit(main())
