"""A small world to sign in: a key, a trust directory, a store on disk, models, and ways to die at any call."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aegis import manifest, package, pointer, signature
from aegis.package import Origin, Package
from aegis.signature import Keys, Signer
from aegis.storage import Store, open_store
from sign_model import keys
from sign_model.chain import Chain
from sign_model.promote import Promotion, Request, promote
from sign_model.registry import Registry
from sign_model.sign import sign

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Fuse:
    """Counts calls through it and dies before or after the chosen one; lists what it saw."""

    at: int = -1
    after: bool = False
    seen: list[str] = field(default_factory=list)

    def around(self, target: Any) -> Any:
        return _Fused(target, self)


class _Fused:
    def __init__(self, target: Any, fuse: Fuse) -> None:
        self._target, self._fuse = target, fuse

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            fuse = self._fuse
            mine = len(fuse.seen)
            fuse.seen.append(name)
            if mine == fuse.at and not fuse.after:
                raise Killed(name)
            result = method(*args, **kwargs)
            if mine == fuse.at:
                raise Killed(name)
            return result

        return call


@dataclass
class World:
    """Everything one test needs, in one directory."""

    root: Path
    model: str = "digits"
    environment: str = "default"

    def __post_init__(self) -> None:
        for name in ("models", "scratch", "out"):
            (self.root / name).mkdir()
        self.signer: Signer = keys.ensure(self.root / "keys" / "signing.pem", self.trusted_dir)

    @property
    def trusted_dir(self) -> Path:
        return self.root / "trusted"

    @property
    def trusted(self) -> Keys:
        return signature.load_keys(self.trusted_dir)

    @property
    def uri(self) -> str:
        return f"file://{self.root}/models"

    @property
    def store(self) -> Store:
        return open_store(self.uri, env={})

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    def make_model(self, name: str = "model", text: str = "weights") -> Path:
        directory = self.root / name
        (directory / "data").mkdir(parents=True)
        (directory / "MLmodel").write_text("flavors: {}\n")
        (directory / "data" / "weights.bin").write_bytes(text.encode() * 100)
        (directory / "data.txt").write_text("sorts after data/weights.bin by its parts")
        sources = [{"uri": "file:///data/new", "digest": "ab" * 32}]
        (directory / "aegis_dataset.json").write_text(json.dumps({"sources": sources}))
        return directory

    def origin(self, uid: str = "uid-1") -> Origin:
        return Origin(
            model=self.model,
            environment=self.environment,
            workflow_uid=uid,
            event_id="event-1",
            fingerprint="f00d",
            sources=[{"uri": "file:///data/new", "digest": "ab" * 32}],
        )

    def signed(self, directory: Path, uid: str = "uid-1", store: Store | None = None) -> Package:
        return sign(
            directory,
            self.origin(uid),
            manifest.root_digest(manifest.walk(directory)),
            store=store or self.store,
            signer=self.signer,
            trusted=self.trusted,
            scratch=self.scratch,
        )

    def folder(self, tar: str) -> Path:
        return self.root / "models" / package.folder(self.environment, self.model, tar)

    def pointer_file(self) -> Path:
        return self.root / "models" / pointer.path_of(self.environment, self.model)

    def promoted(
        self, tar: str, models: Registry, champion: str = "", uid: str = "uid-1", store: Store | None = None
    ) -> Promotion:
        now = self.pointer()
        if champion and "@" not in champion:  # as the gate saw it: the one of now, or one that was there before
            champion = now.mark if now and now.tar_sha256 == champion else f"{champion}@1"
        request = Request(
            environment=self.environment,
            model=self.model,
            tar_sha256=tar,
            champion=champion,
            workflow=f"aegis-digits-{uid}",
            workflow_uid=uid,
            run_id="",
            alias="champion",
        )
        return promote(request, self.chain(models, store))

    def chain(self, models: Registry, store: Store | None = None) -> Chain:
        return Chain(
            store=store or self.store,
            models_uri=self.uri,
            signer=self.signer,
            trusted=self.trusted,
            models=models,
            now=NOW,
            scratch=self.scratch,
        )

    def pointer(self) -> pointer.Pointer | None:
        found = pointer.read(self.store, self.trusted, self.environment, self.model)
        return found[0] if found else None

    def env(self, **more: str) -> dict[str, str]:
        """A step's environment, as the WorkflowTemplate sets it."""
        event = {"event_id": "event-1", "fingerprint": "f00d", "sequence": 3, "reason": "Drifting"}
        return {
            "AEGIS_MODEL": self.model,
            "AEGIS_ENVIRONMENT": self.environment,
            "AEGIS_WORKFLOW": "aegis-digits-1",
            "AEGIS_WORKFLOW_UID": "uid-1",
            "AEGIS_DATASET_URI": "file:///data/new",
            "AEGIS_EVENT": encoded(event),
            "AEGIS_SETTINGS": encoded({"seed": 7}),
            "AEGIS_MODELS_URI": self.uri,
            "AEGIS_SIGNING_KEY": f"file://{self.root}/keys/signing.pem",
            "AEGIS_TRUSTED_KEYS": str(self.trusted_dir),
            "AEGIS_OUT": str(self.root / "out"),
            "AEGIS_TMP": str(self.scratch),
            **more,
        }

    def output(self, name: str) -> str:
        return (self.root / "out" / name).read_text()


def encoded(document: object) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def process_env(env: dict[str, str]) -> dict[str, str]:
    """What a child process gets: PATH and the step's own."""
    return {"PATH": os.environ["PATH"], "HOME": env["AEGIS_TMP"], **env}


def dies_everywhere(run: Callable[[Fuse], object], check: Callable[[str], None]) -> list[str]:
    """Run with a fuse at each call in turn, before and after it, until a run survives; `check` follows each death."""
    names: list[str] = []
    for after in (False, True):
        for at in range(200):
            fuse = Fuse(at, after)
            try:
                run(fuse)
            except Killed as death:
                names.append(str(death))
                check(f"{'after' if after else 'before'} call {at}, {death}")
            else:
                break
        else:
            raise AssertionError("it never ended")
    return names
