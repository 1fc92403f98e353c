"""What every act on a champion needs: the store and its keys, the registry, the time, a place to work in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aegis import signature
from aegis.signature import Keys, Signer
from aegis.storage import Store, open_store
from sign_model import keys
from sign_model.registry import MlflowRegistry, Registry
from sign_model.step import Context


@dataclass(frozen=True, slots=True)
class Chain:
    """One store of models and those who speak for it. Acts that differ only in what they do take one of these."""

    store: Store
    models_uri: str
    """The store's address, for people."""
    signer: Signer
    trusted: Keys
    models: Registry
    now: datetime
    scratch: Path

    @classmethod
    def of(cls, context: Context, env: Mapping[str, str]) -> Chain:
        """That of a step. Raises Permanent or Temporary where store or key cannot be had."""
        return cls(
            store=open_store(context.models_uri, env=env),
            models_uri=context.models_uri,
            trusted=signature.load_keys(context.trusted_keys),
            signer=keys.load(context.signing_key, env),
            models=MlflowRegistry(env.get("MLFLOW_TRACKING_URI", "")),
            now=datetime.now(UTC),
            scratch=context.scratch,
        )
