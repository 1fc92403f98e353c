"""A step's environment: read once, every fault at once, every default defended."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import USAGE, Permanent
from train_model.attempt import Attempt, GateSettings, TrainerSettings

NAMES = {"AEGIS_MODEL": "m", "AEGIS_ENVIRONMENT": "prod", "AEGIS_WORKFLOW_UID": "u-1"}


def env(settings: object = None, **more: str) -> dict[str, str]:
    encoded = base64.b64encode(json.dumps(settings or {}).encode()).decode()
    return NAMES | {"AEGIS_SETTINGS": encoded} | more


def test_without_settings_the_defaults_hold() -> None:
    attempt = Attempt.from_env(NAMES)
    assert (attempt.trainer, attempt.gate, attempt.seed) == (TrainerSettings(), GateSettings(), 0)
    assert attempt.prefixes == ()


def test_settings_are_camel_case_and_typed() -> None:
    given = {"trainer": {"data": "new", "timeoutSeconds": 5}, "gate": {"minRows": 300, "alpha": 1e-3}, "seed": 7}
    attempt = Attempt.from_env(env(given, AEGIS_DATASET_PREFIXES="s3://a/, gs://b/x"))
    assert (attempt.trainer.data, attempt.trainer.timeout_seconds) == ("new", 5)
    assert (attempt.gate.min_rows, attempt.gate.alpha, attempt.seed) == (300, 0.001, 7)
    assert attempt.prefixes == ("s3://a/", "gs://b/x")


def test_every_fault_is_named_at_once() -> None:
    settings = {
        "trainer": {"data": "old", "module": "x; rm", "nope": 1, "timeoutSeconds": True},
        "gate": {"alpha": 0, "minRows": 1.5, "margin": "5"},
        "seed": -1,
    }
    broken = env(settings, AEGIS_MODEL="../x", AEGIS_EVENT="%%%")
    with pytest.raises(Permanent) as caught:
        Attempt.from_env(broken, ["AEGIS_MODELS_URI"])
    assert caught.value.exit_code == USAGE
    assert set(caught.value.faults) == {
        "AEGIS_MODEL", "AEGIS_MODELS_URI", "AEGIS_EVENT", "settings.seed", "settings.trainer.data",
        "settings.trainer.module", "settings.trainer.nope", "settings.trainer.timeoutSeconds",
        "settings.gate.alpha", "settings.gate.minRows", "settings.gate.margin",
    }  # fmt: skip


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional={"trainer": json_values, "gate": json_values, "seed": json_values}))
def test_whatever_json_the_settings_are_the_answer_is_an_attempt_or_a_usage_error(settings: Any) -> None:
    try:
        Attempt.from_env(env(settings))
    except Permanent as error:
        if error.exit_code != USAGE:
            raise


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_text_event_and_settings_are_likewise(event: str, settings: str) -> None:
    try:
        Attempt.from_env(NAMES | {"AEGIS_EVENT": event, "AEGIS_SETTINGS": settings})
    except Permanent as error:
        if error.exit_code != USAGE:
            raise


@pytest.mark.parametrize(("step", "seconds"), [("trainer", 7 * 86400), ("gate", 3600)])
def test_a_time_that_the_pod_would_not_live_to_see_is_refused(step: str, seconds: int) -> None:
    with pytest.raises(Permanent) as caught:
        Attempt.from_env(env({step: {"timeoutSeconds": seconds}}))
    assert caught.value.faults.keys() == {f"settings.{step}.timeoutSeconds"}


def test_every_setting_defends_its_default() -> None:
    import inspect

    for kind in (TrainerSettings, GateSettings):
        source = inspect.getsource(kind)
        assert source.count('"""') == 2 * (1 + len(kind.__dataclass_fields__)), kind
