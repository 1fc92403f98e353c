"""Names, and the aliases made of them: what MLflow takes, one for each environment, the same for all who need it."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved

from aegis.errors import Permanent, Temporary
from aegis.mlflow_client import errors
from aegis.names import ALIAS, NAME, alias_of, printable
from retrain_trigger import workflow
from retrain_trigger.model import Policy, Record, Retrain, Status, policy_from
from sign_model.step import Context
from tests.signing.world import World

names = st.from_regex(NAME, fullmatch=True)
NOW = datetime(2026, 3, 4, tzinfo=UTC)


def takes(alias: str) -> bool:
    """Whether MLflow does."""
    try:
        _validate_model_alias_name(alias)  # type: ignore[no-untyped-call]
        _validate_model_alias_name_reserved(alias)  # type: ignore[no-untyped-call]
    except MlflowException:
        return False
    return True


@given(st.text(max_size=12) | st.from_regex(r"(?i:v[0-9]{1,3}|latest|[a-z0-9_.-]{1,12})", fullmatch=True))
def test_an_alias_that_we_take_mlflow_takes(text: str) -> None:
    assert not ALIAS.fullmatch(text) or takes(text)


@pytest.mark.parametrize("text", ["", "a.b", "latest", "Latest", "v1", "V22", "a b", "champion\n", "a" * 101])
def test_what_is_no_alias_is_refused_in_a_policy(text: str) -> None:
    assert not ALIAS.fullmatch(text)
    if text:
        with pytest.raises(Permanent) as caught:
            policy_from({"alias": text})
        assert caught.value.faults.keys() == {"spec.alias"}


@given(names)
def test_every_environment_has_an_alias_that_mlflow_takes(environment: str) -> None:
    assert ALIAS.fullmatch(alias_of(environment))
    assert takes(alias_of(environment))


@given(st.lists(st.from_regex(r"[ab][ab.-]{0,6}", fullmatch=True), unique=True))
def test_no_two_environments_share_an_alias(environments: list[str]) -> None:
    assert len({alias_of(environment) for environment in environments}) == len(environments)


def test_an_alias_names_its_environment_but_for_the_default_one_unless_its_owner_chose() -> None:
    assert alias_of("default") == "champion"
    assert alias_of("eu-prod") == "champion-eu-prod"
    assert alias_of("eu.prod").startswith("champion-eu-prod-")
    assert alias_of("eu.prod", "best") == "best"


@pytest.mark.parametrize("environment", ["default", "prod", "eu.prod"])
@pytest.mark.parametrize("chosen", [None, "best"])
def test_what_the_trigger_orders_the_steps_take(world: World, environment: str, chosen: str | None) -> None:
    record = Record(
        name="x", uid="u", version="1", environment=environment, model="digits", policy=Policy(alias=chosen),
        status=Status(),
    )  # fmt: skip
    retrain = Retrain(
        sequence=1, workflow="aegis-digits-1", claim="c", phase="Claimed", first_claimed_at=NOW, claimed_at=NOW
    )
    given = workflow.manifest(record, retrain, "aegis")["spec"]["arguments"]["parameters"]
    [settings] = [parameter["value"] for parameter in given if parameter["name"] == "settings"]
    context = Context.from_env(world.env(AEGIS_ENVIRONMENT=environment, AEGIS_SETTINGS=settings))
    assert context.alias == alias_of(environment, chosen)


@given(st.text())
def test_printable_text_is_as_long_and_shows_what_can_be_seen(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) == len(text)
    assert shown == text or not text.isprintable()


def test_a_password_that_would_be_cut_is_redacted_before() -> None:
    with pytest.raises(Temporary) as caught, errors():
        raise MlflowException("x" * 280 + " https://aegis:hunter2-hunter2@mlflow/")
    assert "hunt" not in str(caught.value)


def test_the_images_of_the_steps_need_no_cloudevents_and_import_mlflow_on_use() -> None:
    steps = ["sign_model.sign", "sign_model.promote", "sign_model.finish"]
    steps += ["train_model.fetch", "train_model.train", "train_model.gate"]
    code = f"import sys, {', '.join(steps)}\n"
    code += "print([name for name in ('cloudevents', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
