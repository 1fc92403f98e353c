"""Make a signed package the champion: `python -m sign_model.promote`.

Verify it again from the store, register exactly the signed bytes, move the pointer by compare-and-set, let
the alias follow. Each part may be repeated: killed anywhere, the next run finishes without a second version
or serial. Never loads a model.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from aegis import package, pointer
from aegis.errors import Conflict, Temporary
from aegis.package import Package
from aegis.pointer import MARK, Pointer
from aegis.step import run, write_outputs
from sign_model import registry
from sign_model.chain import Chain
from sign_model.registry import Registry
from sign_model.step import Context, wanted

PROMOTED, STALE = "Promoted", "Failed:StaleChallenger"


@dataclass(frozen=True, slots=True)
class Promotion:
    """How it ended: outcome, a plain sentence, the pointer's serial, the registry's version ("" if stale)."""

    outcome: str
    explanation: str
    serial: int
    version: str


@dataclass(frozen=True, slots=True)
class Request:
    """What to promote, on whose behalf, and which champion (`Pointer.mark`, "" for none) it was compared with."""

    environment: str
    model: str
    tar_sha256: str
    champion: str
    workflow: str
    workflow_uid: str
    run_id: str
    alias: str
    told: Mapping[str, str] = field(default_factory=dict)
    """More tags for the version: the event and the decision that led here."""


def promote(request: Request, chain: Chain) -> Promotion:
    """Promote one package. A pointer that moved since the gate looked makes it stale, which is no error."""
    environment, model = request.environment, request.model
    store, trusted, models = chain.store, chain.trusted, chain.models
    found = pointer.read(store, trusted, environment, model)
    if not _ours(found, request) and _mark(found) != request.champion:
        return _stale(found, request)
    with tempfile.TemporaryDirectory(dir=chain.scratch) as place:
        directory = Path(place) / "model"
        signed = package.fetch(store, trusted, environment, model, request.tar_sha256, directory)
        version = models.register(directory, model, request.run_id, _tags(request, signed, chain))
    text = f"{environment}/{model} is version {version}"
    if not _ours(found, request):
        text += _noted_apart(found, request, version, models)
        new = Pointer(
            model=model,
            environment=environment,
            serial=found[0].serial + 1 if found else 1,
            tar_sha256=request.tar_sha256,
            root_digest=signed.root_digest,
            package=uri_of(chain.models_uri, signed),
            run_id=request.run_id,
            model_version=version,
            workflow=request.workflow_uid,
            promoted_at=stamp(chain.now),
        )
        try:
            store.swap(
                pointer.path_of(environment, model), pointer.seal(new, chain.signer), found[1] if found else None
            )
        except Conflict:
            # Somebody else won, or it was us and only the answer was lost.
            found = pointer.read(store, trusted, environment, model)
            if not _ours(found, request):
                models.tag(model, version, {"aegis.outcome": STALE})
                return _stale(found, request)
    serial = follow(environment, model, request.alias, chain)
    return Promotion(PROMOTED, f"{text}, pointer serial {serial}.", serial, version)


def _noted_apart(found: tuple[Pointer, str] | None, request: Request, version: str, models: Registry) -> str:
    """Say, here and on the new version, where the alias was if not at the pointer's version: it follows again now."""
    was = models.aliased(request.model, request.alias)
    if was in {"", version, found[0].model_version if found else ""}:
        return ""
    models.tag(request.model, version, {registry.APART: was})
    return f" (the alias {request.alias} stood at version {was}, apart from the pointer; it follows again)"


def follow(environment: str, model: str, alias: str, chain: Chain) -> int:
    """Bring tag and alias to where the pointer is, again if it moved meanwhile; its serial."""
    store, trusted, models = chain.store, chain.trusted, chain.models
    for _ in range(8):
        found = pointer.read(store, trusted, environment, model)
        if found is None:
            break
        current = found[0]
        models.tag(model, current.model_version, {registry.SERIAL: str(current.serial)})
        models.alias(model, alias, current.model_version)
        if pointer.read(store, trusted, environment, model) == found:
            return current.serial
    raise Temporary("the pointer keeps moving; the alias could not follow it")


def uri_of(models_uri: str, signed: Package) -> str:
    """Where a package of the store lies, for people."""
    return f"{models_uri.rstrip('/')}/{signed.where}"


def stamp(now: datetime) -> str:
    """A time as pointers have it: UTC, milliseconds."""
    return now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ours(found: tuple[Pointer, str] | None, request: Request) -> bool:
    return found is not None and (found[0].workflow, found[0].tar_sha256) == (
        request.workflow_uid,
        request.tar_sha256,
    )


def _mark(found: tuple[Pointer, str] | None) -> str:
    return found[0].mark if found else ""


def _short(mark: str) -> str:
    tar, _, serial = mark.partition("@")
    return f"{tar[:12]} (serial {serial})" if mark else "none"


def _stale(found: tuple[Pointer, str] | None, request: Request) -> Promotion:
    text = f"The champion changed while this model was made: {_short(_mark(found))} now, "
    text += f"{_short(request.champion)} when it was compared."
    return Promotion(STALE, text, found[0].serial if found else 0, "")


def _tags(request: Request, signed: Package, chain: Chain) -> dict[str, str]:
    return {
        registry.UID: request.workflow_uid,
        registry.TAR: signed.tar_sha256,
        registry.ENVIRONMENT: request.environment,
        "aegis.workflow": request.workflow,
        "aegis.run_id": request.run_id,
        "aegis.root_digest": signed.root_digest,
        "aegis.package": uri_of(chain.models_uri, signed),
        **request.told,
    }


def _body(env: Mapping[str, str]) -> str:
    context = Context.from_env(env)
    request = Request(
        environment=context.environment,
        model=context.model,
        tar_sha256=wanted(env, "AEGIS_PACKAGE"),
        champion=wanted(env, "AEGIS_CHAMPION", MARK, "a sha256 in hex, @ and a serial, or empty", empty=True),
        workflow=context.workflow,
        workflow_uid=context.workflow_uid,
        run_id=context.run_id,
        alias=context.alias,
        told={f"aegis.{name}": context.told(name) for name in ("event_id", "fingerprint", "reason")},
    )
    done = promote(request, Chain.of(context, env))
    outputs = {"outcome": done.outcome, "pointer": str(done.serial), "registered-version": done.version}
    write_outputs(context.out, outputs | {"explanation": done.explanation})
    return f"{done.outcome}: {done.explanation}"


def main(env: Mapping[str, str] = os.environ) -> int:
    """Entry point; exit codes in `aegis.errors`."""
    return run("promote", _body, env)


if __name__ == "__main__":
    sys.exit(main())
