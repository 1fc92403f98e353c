"""The file of `aegis up`: defaults that work as they stand, and every fault at once, by its dotted path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegis.errors import USAGE, Permanent
from aegis_cli import config

STATE = Path("/state")


def faults(document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(Permanent) as refused:
        config.check(document, STATE)
    assert refused.value.exit_code == USAGE
    return dict(refused.value.faults)


def test_an_empty_file_means_the_documented_defaults() -> None:
    found = config.check({}, STATE)
    assert dict(found.ports) == {"receiver": 12000, "trigger": 12001, "mlflow": 12002}
    assert found.receiver["model"]["default"] == "default"
    assert found.prefixes(STATE) == ["s3://my-staging-bucket/", "file:///state/datasets/"]
    assert found == config.Config()


def test_every_fault_is_told_at_once_by_its_dotted_path() -> None:
    found = faults(
        {
            "surprise": 1,
            "receiver": {"alertnames": "ModelDrift", "model": {"label": ["m"]}},
            "trigger": {"budget": 0, "datasetPrefixes": ["a,b"], "createUnknown": "yes", "runDeadline": "soon", "x": 1},
            "models": [{"model": "a/b"}, {"model": "good", "cooldown": "1s", "colour": "red"}, "digits"],
            "ports": {"receiver": 0, "mlflow": True, "web": 1},
            "reconcileInterval": "0s",
        }
    )
    named = {
        "surprise", "trigger.budget", "trigger.datasetPrefixes", "trigger.createUnknown", "trigger.runDeadline",
        "trigger.x", "models[0].model", "models[1].cooldown", "models[1].colour", "models[2]", "ports.receiver",
        "ports.mlflow", "ports.web", "reconcileInterval",
    }  # fmt: skip
    assert named <= found.keys()
    assert {name for name in found.keys() - named if not name.startswith("receiver.")} == set()
    assert any("alertnames" in name for name in found)
    assert any("model" in name for name in found if name.startswith("receiver."))


def test_what_would_cost_a_retrain_is_told_before() -> None:
    found = faults(
        {
            "trigger": {"datasetPrefixes": ["s3://data/"]},
            "models": [
                {
                    "model": "digits",
                    "trainer": {"data": "old", "min_rows": 1, "timeoutSeconds": "1h"},
                    "gate": {"alpha": 2, "colour": "red"},
                    "alias": "v1",
                    "datasetUri": "s3://elsewhere/x",
                    "evaluationUri": "s3://data/../x",
                }
            ],
            "allowPickle": "yes",
        }
    )
    assert {name.removeprefix("models[0].") for name in found} == {
        "trainer.data", "trainer.min_rows", "trainer.timeoutSeconds", "gate.alpha", "gate.colour", "alias",
        "datasetUri", "evaluationUri", "allowPickle",
    }  # fmt: skip


def test_a_fault_elsewhere_hides_none_of_a_model() -> None:
    model = {"model": "digits", "evaluationUri": "gs://elsewhere/x", "datasetUri": "file:///a/%2e%2e/b"}
    found = faults({"surprise": 1, "ports": {"web": 1}, "models": [model]})
    assert {"models[0].evaluationUri", "models[0].datasetUri", "surprise", "ports.web"} == found.keys()


def test_without_prefixes_in_the_file_those_of_the_state_hold() -> None:
    assert faults({"models": [{"model": "a", "evaluationUri": "file:///elsewhere/x"}]}) == {
        "models[0].evaluationUri": "is not below an allowed dataset prefix"
    }
    model = {"model": "digits", "evaluationUri": "file:///state/datasets/x", "datasetUri": "s3://my-staging-bucket/d/"}
    assert config.check({"models": [model]}, STATE).models == (model,)


@pytest.mark.parametrize("key", ["receiver", "trigger", "ports", "models"])
def test_a_section_of_the_wrong_kind_is_named(key: str) -> None:
    assert key in faults({key: "text"})


def test_a_model_needs_a_name_and_an_environment_has_a_default() -> None:
    assert faults({"models": [{}]}).keys() == {"models[0].model"}
    assert config.check({"models": [{"model": "digits"}]}, STATE).models == ({"model": "digits"},)


def test_the_same_model_twice_is_refused() -> None:
    assert "models[1]" in faults({"models": [{"model": "a"}, {"model": "a", "environment": "default"}]})


def test_two_parts_cannot_share_a_port() -> None:
    assert faults({"ports": {"receiver": 12001}}).keys() == {"ports"}


def test_an_empty_list_of_locations_allows_none() -> None:
    assert config.check({"trigger": {"datasetPrefixes": []}}, STATE).prefixes(STATE) == []


@pytest.mark.parametrize("prefix", ["", "my-bucket", "http://bucket/", "s3://", "s3://bucket/../other/"])
def test_a_location_that_no_data_could_have_is_refused(prefix: str) -> None:
    assert "trigger.datasetPrefixes" in faults({"trigger": {"datasetPrefixes": [prefix]}})


def test_a_model_name_default_of_ones_own_is_kept() -> None:
    own = {"labels": ["model"], "default": "churn"}
    assert config.check({"receiver": {"model": own}}, STATE).receiver["model"] == own


@pytest.mark.parametrize("content", [b"\xff\xfe", b"- a list\n", b"ports: {receiver: 1, receiver: 2}\n", b"a: *b\n"])
def test_a_file_that_is_no_configuration_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "aegis.yaml"
    path.write_bytes(content)
    with pytest.raises(Permanent) as refused:
        config.load(path, STATE)
    assert refused.value.exit_code == USAGE


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match=r"nosuch\.yaml"):
        config.load(tmp_path / "nosuch.yaml", STATE)
