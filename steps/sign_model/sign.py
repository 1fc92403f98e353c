"""Pack a model, sign it, publish the package: `python -m sign_model.sign`.

Signs only the bytes that the gate judged (AEGIS_DIGEST). Never loads the model, never talks to the registry.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from aegis import manifest, package, signature
from aegis.errors import SIGNING_DENIED, VERIFICATION_FAILED, AlreadyExists, Permanent
from aegis.names import SHA256
from aegis.package import Origin, Package
from aegis.signature import Keys, Signer, Untrusted
from aegis.step import run, write_outputs
from aegis.storage import Store, open_store
from sign_model import keys
from sign_model.step import Context, wanted

DATASET = "aegis_dataset.json"
"""Among the model's files: what it learned from, {"sources": [{uri, digest}]}, as training saw it."""
MAX_DATASET = 1 << 20
_SEEN = (
    dict.fromkeys(("model", "environment", "dataset_uri", "seed"), "parameter of the Workflow")
    | dict.fromkeys(("event_id", "fingerprint", "retrain", "decision"), "drift event that the Workflow carries")
    | dict.fromkeys(("run_id", "inputs"), "output of the training step")
    | {
        "invocationId": "Workflow",
        "sources": f"{DATASET} of the training step, among the signed files",
        "trainer": "WorkflowTemplate",
        "pickle_allowed": "setting of the signer",
    }
)
"""Where each field of a Workflow's provenance was observed. Only the signer's own reading of the bytes is its own."""


def sign(
    directory: Path,
    origin: Origin,
    digest: str | None,
    *,
    store: Store,
    signer: Signer,
    trusted: Keys,
    scratch: Path,
) -> Package:
    """Sign and publish a model directory. Run again, what is there is verified and kept, the rest added.

    `digest` is the root digest that the gate gave (None: nobody judged it); any other model is refused (76).
    """
    if key_of(signer) not in trusted:
        raise Permanent("the signing key is not among the trusted keys", {"key": signer.uri}, exit_code=SIGNING_DENIED)
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        tar = Path(place) / package.TAR
        with tar.open("xb") as stream:
            packed = manifest.pack(directory, stream, allow_pickle=origin.allow_pickle)
        root = manifest.root_digest(packed.files)
        if digest is not None and root != digest:
            raise Permanent(
                "this is not the model that the gate judged",
                {"digest": f"{root}, wanted {digest}"},
                exit_code=VERIFICATION_FAILED,
            )
        small = package.sign(packed, origin, signer)
        where = package.folder(origin.environment, origin.model, packed.tar_sha256)
        if _left_by_another_key(store, where, trusted):
            where = package.folder(origin.environment, origin.model, packed.tar_sha256, key_of(signer))
        publish(store, where, tar, small, trusted)
        return package.read(store, trusted, origin.environment, origin.model, packed.tar_sha256)


def publish(store: Store, where: str, tar: Path, small: dict[str, bytes], trusted: Keys) -> None:
    """Write a package's files to a folder. What is there already is verified and kept, never overwritten."""
    ours = package.check(small, trusted, tar_sha256=None, model=None, environment=None)
    if not _create(store, f"{where}/{package.TAR}", tar):
        again = tar.with_name("again.tar")
        store.download(f"{where}/{package.TAR}", again, limit=tar.stat().st_size)
        with again.open("rb") as stream:
            manifest.unpack(stream, ours.files, ours.tar_sha256, None)
    for name in small:
        # The commit mark comes after everything before it, ours or kept, was checked together.
        if name == package.RESULT:
            package.check(small, trusted, tar_sha256=ours.tar_sha256, model=ours.model, environment=ours.environment)
        if not _create(store, f"{where}/{name}", small[name]):
            small[name] = store.read(f"{where}/{name}", limit=signature.MAX_BUNDLE)


def key_of(signer: Signer) -> str:
    """The hint of the signer's key."""
    return signature.hint(signature.parse_public(signer.public_pem()))


def _left_by_another_key(store: Store, where: str, trusted: Keys) -> bool:
    """Whether a key that is trusted no more began the folder: no file in it can become part of a good package."""
    path = f"{where}/{package.SIGNER}"
    if store.head(path) is None:
        return False
    try:
        return signature.hint(signature.parse_public(store.read(path, limit=signature.MAX_BUNDLE))) not in trusted
    except ValueError:
        return False


def _create(store: Store, path: str, source: bytes | Path) -> bool:
    try:
        store.create(path, source)
    except AlreadyExists:
        return False
    return True


def origin_of(context: Context, directory: Path) -> Origin:
    """The provenance of this workflow's model, from its event, its settings and the data set it names."""
    seed, sequence = context.settings.get("seed"), context.event.get("sequence")
    return Origin(
        model=context.model,
        environment=context.environment,
        workflow_uid=context.workflow_uid,
        run_id=context.run_id,
        event_id=context.told("event_id"),
        fingerprint=context.told("fingerprint"),
        dataset_uri=context.dataset_uri,
        inputs_digest=context.inputs,
        sources=sources_of(directory),
        seed=seed if isinstance(seed, int) else None,
        retrain=sequence if isinstance(sequence, int) else None,
        decision=context.told("reason"),
        trainer_image=context.trainer_image,
        allow_pickle=context.allow_pickle,
        seen=_SEEN,
    )


def sources_of(directory: Path) -> list[dict[str, str]]:
    """The data sets that a model directory says it was made from; none if it says nothing."""
    try:
        with os.fdopen(os.open(directory / DATASET, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            document = signature.parse_json(stream.read(MAX_DATASET + 1), MAX_DATASET)
        sources = [{"uri": item["uri"], "digest": item["digest"]} for item in document["sources"]]
    except FileNotFoundError:
        return []
    except (OSError, Untrusted, KeyError, TypeError) as error:
        raise Permanent("the model's data sets", {DATASET: 'wants {"sources": [{uri, digest}]}'}) from error
    if not all(isinstance(item["uri"], str) and SHA256.fullmatch(str(item["digest"])) for item in sources):
        raise Permanent("the model's data sets", {DATASET: "wants a text as uri, a sha256 in hex as digest"})
    return sources


def _body(env: Mapping[str, str]) -> str:
    context = Context.from_env(env)
    digest = wanted(env, "AEGIS_DIGEST")
    directory = Path(env.get("AEGIS_MODEL_DIR") or "/aegis/model")
    signed = sign(
        directory,
        origin_of(context, directory),
        digest,
        store=open_store(context.models_uri, env=env),
        signer=keys.load(context.signing_key, env),
        trusted=signature.load_keys(context.trusted_keys),
        scratch=context.scratch,
    )
    write_outputs(context.out, {"package": signed.tar_sha256})
    return f"signed {context.environment}/{context.model} as package {signed.tar_sha256}"


def main(env: Mapping[str, str] = os.environ) -> int:
    """Entry point; exit codes in `aegis.errors`."""
    return run("sign", _body, env)


if __name__ == "__main__":
    sys.exit(main())
