"""Sign the champion anew with the current key: `aegis resign`, or `python -m sign_model.resign` with a step's settings.

A person's act, after a key was revoked or before it will be. The bytes and what was said about them stay as they are.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from aegis import manifest, package, pointer, signature
from aegis.errors import SIGNING_DENIED, NotFound, Permanent
from aegis.names import alias_of
from aegis.package import Package
from aegis.signature import Keys, Untrusted
from aegis.step import run
from sign_model.chain import Chain
from sign_model.promote import PROMOTED, Promotion, follow, stamp, uri_of
from sign_model.sign import key_of, publish
from sign_model.step import Context, wanted


def resign(
    environment: str,
    model: str,
    chain: Chain,
    *,
    believed: Keys,
    only: str = "",
    alias: str = "",
) -> Promotion:
    """Sign the champion's bytes and statements as they are with the current key, and a new pointer to them.

    They are verified under the trusted keys and those `believed` for this once. `only`, a tar digest, refuses any
    other champion: who holds a stolen key may have moved the pointer. What the old key signed stays where it is, and
    stays good for whoever trusts that key. Again, or killed anywhere: only what is missing is done.
    """
    store, trusted, signer = chain.store, chain.trusted, chain.signer
    key = key_of(signer)
    if key not in trusted:
        raise Permanent("the signing key is not among the trusted keys", {"key": signer.uri}, exit_code=SIGNING_DENIED)
    own, everyone = {key: trusted[key]}, {**believed, **trusted}
    found = pointer.read(store, everyone, environment, model)
    if found is None:
        raise NotFound(f"{environment}/{model} has no champion to sign")
    current, version = found
    if only and only != current.tar_sha256:
        raise Untrusted("the champion is refused", {"package": f"is {current.tar_sha256}, wanted {only}"})
    try:
        source = held = package.read(store, own, environment, model, current.tar_sha256)
    except (NotFound, Untrusted):
        source, held = package.read(store, everyone, environment, model, current.tar_sha256), None
    if source.root_digest != current.root_digest:
        raise Untrusted("the champion is refused", {"root_digest": "is not the one that the pointer names"})
    held = held or _signed_again(source, chain, everyone, own)
    try:
        done = pointer.read(store, own, environment, model) == found
    except Untrusted:
        done = False
    if not done:
        new = replace(
            current, serial=current.serial + 1, package=uri_of(chain.models_uri, held), promoted_at=stamp(chain.now)
        )
        store.swap(pointer.path_of(environment, model), pointer.seal(new, signer), version)
    chosen = alias_of(environment, alias)
    serial = follow(environment, model, chosen, chain)
    text = f"{environment}/{model} is signed by {signer.uri}, pointer serial {serial}."
    return Promotion(PROMOTED, text, serial, current.model_version)


def _signed_again(source: Package, chain: Chain, everyone: Keys, own: Keys) -> Package:
    store, signer = chain.store, chain.signer
    environment, model, tar_sha256 = source.environment, source.model, source.tar_sha256
    with tempfile.TemporaryDirectory(dir=chain.scratch) as place:
        tar = package.download(store, source, Path(place))
        with tar.open("rb") as stream:
            manifest.unpack(stream, source.files, tar_sha256, None)
        small = package.read_small(store, source.where)
        again = package.sign_again(source, small, tar.stat().st_size, everyone, signer)
        publish(store, package.folder(environment, model, tar_sha256, key_of(signer)), tar, again, own)
    return package.read(store, own, environment, model, tar_sha256)


def _body(env: Mapping[str, str]) -> str:
    context = Context.from_env({"AEGIS_WORKFLOW": "resign", "AEGIS_WORKFLOW_UID": "resign", **env})
    believed = env.get("AEGIS_BELIEVED_KEYS")
    done = resign(
        context.environment,
        context.model,
        Chain.of(context, env),
        believed=signature.load_keys(Path(believed)) if believed else {},
        only=wanted(env, "AEGIS_PACKAGE") if env.get("AEGIS_PACKAGE") else "",
        alias=context.alias,
    )
    return done.explanation


def main(env: Mapping[str, str] = os.environ) -> int:
    """Entry point; exit codes in `aegis.errors`."""
    return run("resign", _body, env)


if __name__ == "__main__":
    sys.exit(main())
