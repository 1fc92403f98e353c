"""Point at an older package again: `aegis rollback`, or `python -m sign_model.rollback` with a step's settings.

A person's act. The pointer only ever moves forward: its serial grows, so whoever refuses older pointers follows. The
registry says which packages there were; whether one is good is said by its signatures.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from aegis import package, pointer
from aegis.errors import NotFound, Temporary
from aegis.names import SHA256, alias_of
from aegis.step import run
from sign_model.chain import Chain
from sign_model.promote import PROMOTED, Promotion, Request, promote
from sign_model.registry import ENVIRONMENT, SERIAL, TAR
from sign_model.step import Context

PREVIOUS = "previous"
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def rollback(
    environment: str,
    model: str,
    to: str,
    chain: Chain,
    *,
    alias: str = "",
) -> Promotion:
    """Make an older package the champion: its tar digest, a version of the registry, or the champion before this one.

    It is verified to its last byte as for any promotion (76). `NotFound` if there is no such package, or no champion.
    Two in a row end where they began. If it is the champion already, only tag and alias are put right.
    """
    store, trusted = chain.store, chain.trusted
    found = pointer.read(store, trusted, environment, model)
    if found is None:
        raise NotFound(f"{environment}/{model} has no champion to roll back from")
    champion = found[0].tar_sha256
    tar_sha256 = to if SHA256.fullmatch(to) else _known(chain.models.versions(model), environment, to, champion)
    held = package.read(store, trusted, environment, model, tar_sha256)
    run_id = held.internal.get("run_id")
    request = Request(
        environment=environment,
        model=model,
        tar_sha256=tar_sha256,
        champion=found[0].mark,
        workflow="rollback",
        workflow_uid=held.workflow_uid,  # by this the registry knows the version that is there
        run_id=run_id if isinstance(run_id, str) else "",
        alias=alias_of(environment, alias),
    )
    return promote(request, chain)


def _known(versions: Mapping[str, Mapping[str, str]], environment: str, to: str, champion: str) -> str:
    """The tar digest of a version, or of the last champion before `champion`, as the registry has it."""
    ours = {number: tags for number, tags in versions.items() if tags.get(ENVIRONMENT) == environment}
    if to != PREVIOUS:
        if to not in ours:
            known = ", ".join(sorted(ours, key=int)[-10:]) or "none"
            raise NotFound(f"no version {to[:80]} was promoted for {environment}; the registry has: {known}")
        tar_sha256 = ours[to].get(TAR, "")
    else:
        earlier = [
            (int(tags[SERIAL]), tags.get(TAR, ""))
            for tags in ours.values()
            if _VERSION.fullmatch(tags.get(SERIAL, "")) and tags.get(TAR) != champion
        ]
        if not earlier:
            raise NotFound(f"the registry knows no champion of {environment} before this one; name one with --to")
        _, tar_sha256 = max(earlier)
    if not SHA256.fullmatch(tar_sha256):
        raise NotFound(f"the registry does not say which package version {to} is; name its sha256 with --to")
    return tar_sha256


def _body(env: Mapping[str, str]) -> str:
    context = Context.from_env({"AEGIS_WORKFLOW": "rollback", "AEGIS_WORKFLOW_UID": "rollback", **env})
    done = rollback(
        context.environment,
        context.model,
        env.get("AEGIS_TO") or PREVIOUS,
        Chain.of(context, env),
        alias=context.alias,
    )
    if done.outcome != PROMOTED:
        raise Temporary(done.explanation)
    return done.explanation


def main(env: Mapping[str, str] = os.environ) -> int:
    """Entry point; exit codes in `aegis.errors`."""
    return run("rollback", _body, env)


if __name__ == "__main__":
    sys.exit(main())
