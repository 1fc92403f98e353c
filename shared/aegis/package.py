"""A signed package: what its files say, how they are made, and how they are checked against each other.

A package is a folder named by the tar's sha256: model.tar, model.sig, model.tar.sigstore.json,
provenance.sigstore.json, signer.pub, and result.json, written last, as the mark that it is complete. Only
what is signed is believed; result.json and signer.pub are for people and must agree with it. No policy here.
The same tar signed again by a later key lies in a folder of that key's: nothing that was written is replaced.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aegis import manifest, signature
from aegis.errors import NotFound
from aegis.names import SHA256
from aegis.signature import IN_TOTO, MAX_BUNDLE, Keys, Signer, Untrusted
from aegis.storage import Store

TAR, MODEL_SIG, TAR_SIG = "model.tar", "model.sig", "model.tar.sigstore.json"
PROVENANCE, SIGNER, RESULT = "provenance.sigstore.json", "signer.pub", "result.json"
SMALL = (SIGNER, MODEL_SIG, TAR_SIG, PROVENANCE, RESULT)
MAX_RESULT = 64 << 10
MAX_TAR = 64 << 30
"""64 GiB: a wrong object is refused before it fills the disk; raise it together with the pods' disk."""
_STATEMENT = "https://in-toto.io/Statement/v1"
_MODEL_PREDICATE = "https://model_signing/signature/v1.0"
_SLSA = "https://slsa.dev/provenance/v1"


@dataclass(frozen=True, slots=True)
class Origin:
    """Why and from what a model was made, as the provenance tells it. Empty where nothing was observed.

    `sources` are the data sets it learned from, {uri, digest (sha256 in hex)} each. `seen` says where each field of
    the provenance was observed: what the signer saw itself is worth more than what a step before it said.
    """

    model: str
    environment: str
    workflow_uid: str
    run_id: str = ""
    event_id: str = ""
    fingerprint: str = ""
    dataset_uri: str = ""
    inputs_digest: str = ""
    sources: Sequence[Mapping[str, str]] = ()
    seed: int | None = None
    retrain: int | None = None
    decision: str = ""
    trainer_image: str = ""
    allow_pickle: bool = False
    seen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Package:
    """A package whose signatures hold and agree: what was signed, and by which key (hint)."""

    model: str
    environment: str
    tar_sha256: str
    root_digest: str
    files: tuple[tuple[str, str], ...]
    workflow_uid: str
    external: Mapping[str, Any]
    internal: Mapping[str, Any]
    datasets: tuple[str, ...]
    """Every location of data that the provenance names."""
    signer: str
    where: str = ""
    """Its folder below the store of models; empty where it was not read from one."""


def folder(environment: str, model: str, tar_sha256: str, key: str = "") -> str:
    """Where a package lies below the store of models; with a `key` (hint), what that key signed again."""
    return f"packages/{environment}/{model}/{tar_sha256}" + (f".{key[:16]}" if key else "")


def sign(packed: manifest.Packed, origin: Origin, signer: Signer) -> dict[str, bytes]:
    """The package's small files in the order in which they are written, result.json last."""
    root = manifest.root_digest(packed.files)
    result = {
        "format": 1,
        "model": origin.model,
        "environment": origin.environment,
        "tar_sha256": packed.tar_sha256,
        "tar_size": packed.tar_size,
        "root_digest": root,
    }
    return _signed(_model_statement(packed, root, origin.model), _provenance(packed, root, origin), result, signer)


def sign_again(
    held: Package, small: Mapping[str, bytes], tar_size: int, keys: Keys, signer: Signer
) -> dict[str, bytes]:
    """The small files of a package that holds under `keys`, each statement as it was, by another key.

    `Untrusted` (76) if they are not those of `held`, whose archive the caller has checked.
    """
    check(small, keys, tar_sha256=held.tar_sha256, model=held.model, environment=held.environment)
    model, _ = signature.verify_json(small[MODEL_SIG], IN_TOTO, keys)
    provenance, _ = signature.verify_json(small[PROVENANCE], IN_TOTO, keys)
    result = {
        "format": 1,
        "model": held.model,
        "environment": held.environment,
        "tar_sha256": held.tar_sha256,
        "tar_size": tar_size,
        "root_digest": held.root_digest,
        "signed_before_by": held.signer,
    }
    return _signed(model, provenance, result, signer)


def _signed(
    model: Mapping[str, Any], provenance: Mapping[str, Any], result: Mapping[str, Any], signer: Signer
) -> dict[str, bytes]:
    files = {
        SIGNER: signer.public_pem(),
        MODEL_SIG: signature.sign_json(model, IN_TOTO, signer),
        TAR_SIG: signature.sign_file(result["tar_sha256"], signer),
        PROVENANCE: signature.sign_json(provenance, IN_TOTO, signer),
    }
    key = {"key": signer.uri, "key_sha256": signature.hint(signature.parse_public(files[SIGNER]))}
    files[RESULT] = json.dumps({**result, **key}, indent=2).encode() + b"\n"
    return files


def check(
    small: Mapping[str, bytes],
    keys: Keys,
    *,
    tar_sha256: str | None,
    model: str | None,
    environment: str | None,
) -> Package:
    """Check the small files against keys, each other, what is wanted. `Untrusted` (76) names all faults."""
    faults: dict[str, str] = {}
    hints: dict[str, str] = {}

    def attempt(name: str, verify: Callable[[bytes], tuple[Any, str]]) -> Any:
        try:
            if name not in small:
                raise Untrusted("is missing")
            content, hints[name] = verify(small[name])
        except Untrusted as error:
            faults[name] = str(error)
            return None
        return content

    statement = attempt(MODEL_SIG, lambda data: signature.verify_json(data, IN_TOTO, keys))
    tar = attempt(TAR_SIG, lambda data: signature.verify_file(data, keys))
    provenance = attempt(PROVENANCE, lambda data: signature.verify_json(data, IN_TOTO, keys))
    attempt(SIGNER, lambda data: ((), _hint_of(data)))
    result = attempt(RESULT, lambda data: (signature.parse_json(data, MAX_RESULT), ""))
    if len({key for key in hints.values() if key}) > 1:
        faults["keys"] = "the files are not all signed by the key in signer.pub"
    try:
        root, name, files = _read_model_statement(statement) if statement is not None else ("", "", ())
    except Untrusted as error:
        faults[MODEL_SIG] = str(error)
        root, name, files = "", "", ()
    try:
        told = _read_provenance(provenance) if provenance is not None else None
    except Untrusted as error:
        faults[PROVENANCE] = str(error)
        told = None
    if tar_sha256 is not None and tar and tar != tar_sha256:
        faults[TAR_SIG] = "is about another archive"
    if told:
        found, external, internal, workflow_uid, datasets = told
        if tar and root and (found != _subjects(tar, external["model"], root) or name != external["model"]):
            faults[PROVENANCE] = "is about another build"
        for field, wanted in (("model", model), ("environment", environment)):
            if wanted is not None and external[field] != wanted:
                faults[field] = f"signed for {external[field]!r}, not {wanted!r}"
    if result is not None and tar and root and (result.get("tar_sha256"), result.get("root_digest")) != (tar, root):
        faults[RESULT] = "tells other digests than the signatures"
    if faults or not told:
        raise Untrusted("the package is refused", faults)
    return Package(
        external["model"],
        external["environment"],
        tar,
        root,
        files,
        workflow_uid,
        external,
        internal,
        datasets,
        hints[SIGNER],
    )


def read(store: Store, keys: Keys, environment: str, model: str, tar_sha256: str) -> Package:
    """Read and check a stored package's small files. `NotFound` if it was never completed.

    Where its own folder does not hold, its key revoked or not, one signed again by a trusted key counts.
    """
    where = folder(environment, model, tar_sha256)
    refused: Untrusted | None = None
    for place in (where, *(folder(environment, model, tar_sha256, key) for key in keys)):
        small = read_small(store, place)
        if RESULT in small:
            try:
                held = check(small, keys, tar_sha256=tar_sha256, model=model, environment=environment)
            except Untrusted as error:
                refused = refused or error
            else:
                return replace(held, where=place)
    if refused:
        raise refused
    raise NotFound(f"no complete package at {where}")


def read_small(store: Store, where: str) -> dict[str, bytes]:
    """The small files that a folder has, unchecked; none of them if it was never completed."""
    small: dict[str, bytes] = {}
    for name in reversed(SMALL):  # result.json, without which the others do not count, first
        with suppress(NotFound):
            small[name] = store.read(f"{where}/{name}", limit=MAX_BUNDLE)
        if RESULT not in small:
            break
    return small


def fetch(
    store: Store,
    keys: Keys,
    environment: str,
    model: str,
    tar_sha256: str,
    target: Path,
    *,
    root_digest: str | None = None,
) -> Package:
    """Verify a stored package to its last byte, then let its model appear at `target` (by one rename)."""
    package = read(store, keys, environment, model, tar_sha256)
    if root_digest not in {None, package.root_digest}:
        raise Untrusted("the package is refused", {"root_digest": "is not the one wanted"})
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch.") as scratch,
        download(store, package, Path(scratch)).open("rb") as tar,
    ):
        manifest.unpack(tar, package.files, package.tar_sha256, target)
    return package


def download(store: Store, package: Package, scratch: Path) -> Path:
    """The archive of a package that was read, unchecked, as a file in `scratch`."""
    tar = scratch / TAR
    try:
        store.download(f"{package.where}/{TAR}", tar, limit=MAX_TAR)
    except NotFound as error:
        raise Untrusted("the package is refused", {TAR: "is missing"}) from error
    return tar


def _model_statement(packed: manifest.Packed, root: str, model: str) -> dict[str, Any]:
    resources = [{"name": file.path, "algorithm": "sha256", "digest": file.sha256} for file in packed.files]
    return {
        "_type": _STATEMENT,
        "subject": [{"name": model, "digest": {"sha256": root}}],
        "predicateType": _MODEL_PREDICATE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": resources,
        },
    }


def _subjects(tar_sha256: str, model: str, root: str) -> list[dict[str, Any]]:
    return [{"name": TAR, "digest": {"sha256": tar_sha256}}, {"name": model, "digest": {"sha256": root}}]


def _provenance(packed: manifest.Packed, root: str, origin: Origin) -> dict[str, Any]:
    external = {
        "model": origin.model,
        "environment": origin.environment,
        "event_id": origin.event_id,
        "fingerprint": origin.fingerprint,
        "dataset_uri": origin.dataset_uri,
        "sources": [source["uri"] for source in origin.sources],
    }
    internal = {
        "run_id": origin.run_id,
        "seed": origin.seed,
        "retrain": origin.retrain,
        "decision": origin.decision,
        "inputs": origin.inputs_digest,
        "pickle_allowed": origin.allow_pickle,
    }
    fields = {**external, **internal, "invocationId": origin.workflow_uid, "trainer": origin.trainer_image}
    observed = {name: where for name, where in sorted(origin.seen.items()) if fields[name] not in (None, "", [])}
    return {
        "_type": _STATEMENT,
        "subject": _subjects(packed.tar_sha256, origin.model, root),
        "predicateType": _SLSA,
        "predicate": {
            "buildDefinition": {
                "buildType": "https://aegis.dev/retrain/v1",
                "externalParameters": external,
                "internalParameters": internal | {"observed": observed},
                "resolvedDependencies": [
                    {"name": "dataset", "uri": source["uri"], "digest": {"sha256": source["digest"]}}
                    for source in origin.sources
                ]
                + _image("trainer", origin.trainer_image),
            },
            "runDetails": {
                "builder": {"id": "https://aegis.dev/workflow/v1"},
                "metadata": {"invocationId": origin.workflow_uid},
            },
        },
    }


def _image(name: str, image: str) -> list[dict[str, Any]]:
    """The image as a dependency, with its digest only where it is pinned by one."""
    if not image:
        return []
    digest = image.rpartition("@sha256:")[2]
    return [{"name": name, "uri": image} | ({"digest": {"sha256": digest}} if SHA256.fullmatch(digest) else {})]


def _read_model_statement(statement: dict[str, Any]) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    try:
        (subject,) = statement["subject"]
        name, root = subject["name"], subject["digest"]["sha256"]
        pairs = [(item["name"], item["digest"]) for item in statement["predicate"]["resources"]]
    except (KeyError, TypeError, ValueError) as error:
        raise Untrusted("not a statement about one model") from error
    if not all(
        isinstance(path, str) and isinstance(digest, str) and SHA256.fullmatch(digest) for path, digest in pairs
    ):
        raise Untrusted("not a list of files and sha256 digests")
    if faults := manifest.list_faults([path for path, _ in pairs]):
        raise Untrusted("an unsafe list of files", faults)
    files = [manifest.File(path, 0, digest) for path, digest in pairs]
    if statement != _model_statement(manifest.Packed(tuple(files), "", 0), manifest.root_digest(files), name):
        raise Untrusted("not the statement that its files give")
    return root, name, tuple(pairs)


def _read_provenance(
    statement: dict[str, Any],
) -> tuple[Any, dict[str, Any], dict[str, Any], str, tuple[str, ...]]:
    try:
        if statement["_type"] != _STATEMENT or statement["predicateType"] != _SLSA:
            raise Untrusted("not a SLSA v1 statement about an archive and a model")
        subjects = statement["subject"]
        built = statement["predicate"]["buildDefinition"]
        external, internal = built["externalParameters"], built["internalParameters"]
        uid = statement["predicate"]["runDetails"]["metadata"]["invocationId"]
        texts = [uid, *(external[name] for name in ("model", "environment", "event_id", "fingerprint"))]
        dependencies = [item["uri"] for item in built.get("resolvedDependencies", ()) if item["name"] == "dataset"]
        datasets = [*external.get("sources", ()), *dependencies, *filter(None, [external.get("dataset_uri")])]
    except (AttributeError, KeyError, TypeError) as error:
        raise Untrusted("not the provenance of a model") from error
    if not all(isinstance(text, str) for text in (*texts, *datasets)) or not isinstance(internal, dict):
        raise Untrusted("not the provenance of a model")
    return subjects, external, internal, uid, tuple(dict.fromkeys(datasets))


def _hint_of(pem: bytes) -> str:
    try:
        return signature.hint(signature.parse_public(pem))
    except ValueError as error:
        raise Untrusted("not a P-256 public key") from error
