"""What the steps here are told: identity and settings from the environment. No decisions."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.errors import USAGE, Permanent
from aegis.names import ALIAS, IMAGE, NAME, SHA256, alias_of, printable
from aegis.step import Reader, out_of


@dataclass(frozen=True, slots=True)
class Context:
    """One workflow's identity and settings, as the WorkflowTemplate hands them to its containers."""

    model: str
    environment: str
    workflow: str
    workflow_uid: str
    run_id: str
    dataset_uri: str
    inputs: str
    event: Mapping[str, Any]
    settings: Mapping[str, Any]
    models_uri: str
    signing_key: str
    """AEGIS_SIGNING_KEY, the key's URI."""
    trusted_keys: Path
    """AEGIS_TRUSTED_KEYS, a PEM file or a folder of them. The signing key has to be one of these."""
    out: Path
    scratch: Path
    trainer_image: str
    """AEGIS_TRAINER_IMAGE, as the WorkflowTemplate names it. Empty without tag or digest, as no overlay sets it: where
    steps are processes, no image trained."""
    allow_pickle: bool
    """AEGIS_ALLOW_PICKLE=true, for all models of a cluster, or of an `aegis up` that was started with it. Off: a
    pickle runs code when it is loaded, whoever signed it. `aegis adopt` does not read it: it has --allow-pickle."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Context:
        """Read and check all of it; `Permanent` (64) names every fault."""
        read = Reader(env)
        trainer = read.text("AEGIS_TRAINER_IMAGE", IMAGE, empty=True)
        context = cls(
            model=read.text("AEGIS_MODEL", NAME),
            environment=read.text("AEGIS_ENVIRONMENT", NAME),
            workflow=read.text("AEGIS_WORKFLOW", NAME),
            workflow_uid=read.text("AEGIS_WORKFLOW_UID", NAME),
            run_id=read.text("AEGIS_RUN_ID", NAME, empty=True),
            dataset_uri=read.text("AEGIS_DATASET_URI", empty=True),
            inputs=read.text("AEGIS_INPUTS", SHA256, empty=True),
            event=read.document("AEGIS_EVENT"),
            settings=read.document("AEGIS_SETTINGS"),
            models_uri=read.text("AEGIS_MODELS_URI"),
            signing_key=read.text("AEGIS_SIGNING_KEY"),
            trusted_keys=Path(read.text("AEGIS_TRUSTED_KEYS")),
            out=out_of(env),
            scratch=Path(env.get("AEGIS_TMP") or tempfile.gettempdir()),
            trainer_image=trainer if ":" in trainer else "",
            allow_pickle=env.get("AEGIS_ALLOW_PICKLE") == "true",
        )
        if not ALIAS.fullmatch(context.alias):
            read.faults["AEGIS_SETTINGS.alias"] = f"must match {ALIAS.pattern}"
        read.check()
        return context

    @property
    def alias(self) -> str:
        """The registry alias that follows the pointer."""
        return alias_of(self.environment, str(self.settings.get("alias") or ""))

    def told(self, name: str) -> str:
        """A text from the drift event, fit to show, or empty."""
        value = self.event.get(name)
        return printable(value[:1000]) if isinstance(value, str) else ""


def wanted(
    env: Mapping[str, str], name: str, form: re.Pattern[str] = SHA256, told: str = "a sha256 in hex", *,
    empty: bool = False,
) -> str:  # fmt: skip
    """A digest, or a text of another form, from the environment; `Permanent` (64) if it is not there or not one."""
    value = env.get(name)
    if value is None or not (form.fullmatch(value) or (empty and not value)):
        raise Permanent("bad settings", {name: f"must be {told}"}, exit_code=USAGE)
    return value
