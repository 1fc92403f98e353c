"""Bring a model that already serves into the chain: sign it, publish it, point at it, register it.

A person's act (`aegis adopt`): no gate judged the model, and it replaces whatever the pointer names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from aegis import pointer
from aegis.errors import USAGE, Permanent
from aegis.names import ALIAS, NAME, alias_of
from aegis.package import Origin
from sign_model.chain import Chain
from sign_model.promote import Promotion, Request, promote
from sign_model.sign import sign, sources_of


def adopt(
    directory: Path,
    environment: str,
    model: str,
    chain: Chain,
    *,
    sources: Sequence[Mapping[str, str]] | None = None,
    dataset_uri: str = "",
    run_id: str = "",
    alias: str = "",
    allow_pickle: bool = False,
) -> Promotion:
    """Sign a model directory as it stands and make it the champion. Again with the same bytes: no change.

    `sources` ({uri, digest} each) default to what the directory's aegis_dataset.json says, `alias` to that of the
    environment.
    """
    texts = {"environment": (NAME, environment), "model": (NAME, model), "alias": (ALIAS, alias or "champion")}
    if faults := {n: f"must match {rule.pattern}" for n, (rule, text) in texts.items() if not rule.fullmatch(text)}:
        raise Permanent("adopt", faults, exit_code=USAGE)
    origin = Origin(
        model=model,
        environment=environment,
        workflow_uid="adopted",
        run_id=run_id,
        dataset_uri=dataset_uri,
        sources=sources_of(directory) if sources is None else sources,
        decision="Adopted",
        allow_pickle=allow_pickle,
        seen=dict.fromkeys(
            ("model", "environment", "run_id", "dataset_uri", "sources", "decision", "pickle_allowed"),
            "person who adopted the model",
        ),
    )
    signed = sign(
        directory, origin, None, store=chain.store, signer=chain.signer, trusted=chain.trusted, scratch=chain.scratch
    )
    found = pointer.read(chain.store, chain.trusted, environment, model)
    request = Request(
        environment=environment,
        model=model,
        tar_sha256=signed.tar_sha256,
        champion=found[0].mark if found else "",
        workflow="adopted",
        workflow_uid="adopted",
        run_id=run_id,
        alias=alias_of(environment, alias),
    )
    return promote(request, chain)
