"""Which alerts are ours and what they become; and the configuration that says so."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.errors import Permanent
from aegis.events import NAME, DriftEvent, canonical_json, encode, to_cloudevent
from alert_receiver.alertmanager import Alert, Rejected, fingerprint
from alert_receiver.mapping import (
    EVERY,
    MAX_FEATURE,
    MAX_MATCHED,
    MAX_PATTERN,
    MAX_SUMMARY,
    MAX_URI,
    MAX_URL,
    Config,
    Ignored,
    Mapped,
    Matcher,
    apply,
    bounded,
    load,
    parse_matcher,
    section,
)
from tests.receiver.world import NOW, labels

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def alert(annotations: dict[str, str] | None = None, *, firing: bool = True, url: str = "", **changes: Any) -> Alert:
    found = labels(**changes)
    begin = datetime(2026, 1, 1, 11, tzinfo=UTC)
    return Alert(firing, found, annotations or {}, begin, None if firing else NOW, url, fingerprint(found))


def mapped(found: Alert | Rejected, config: Config | None = None, environments: Collection[str] = EVERY) -> Mapped:
    return apply(found, config or Config(), environments, now=NOW, traceparent=TRACE)


def event(found: Alert, config: Config | None = None, environments: Collection[str] = EVERY) -> DriftEvent:
    result = mapped(found, config, environments)
    assert isinstance(result, DriftEvent), result
    return result


def faults(found: Alert, config: Config | None = None, environments: Collection[str] = EVERY) -> dict[str, str]:
    result = mapped(found, config, environments)
    assert isinstance(result, Rejected), result
    return dict(result.faults)


# --- filters ---


@pytest.mark.parametrize("name", [None, "ModelDriftDetected", "modeldrift", "ModelDrift ", "InfraModelDrift"])
def test_alert_names_are_matched_exactly(name: str | None) -> None:
    assert mapped(alert(alertname=name)) == Ignored("alertname")


def test_a_faulty_alert_that_is_not_ours_is_ignored() -> None:
    assert mapped(Rejected({"status": "?"}, {}, {"alertname": "HighCPU"}, "")) == Ignored("alertname")


@pytest.mark.parametrize("field", ["alert", "labels", "labels.alertname"])
def test_a_faulty_alert_whose_name_cannot_be_read_is_rejected(field: str) -> None:
    found = Rejected({field: "?"}, {}, {}, "")
    assert mapped(found) is found


@pytest.mark.parametrize(
    ("matcher", "team", "accepted"),
    [
        ('team="ml"', "ml", True),
        ('team="ml"', "ops", False),
        ('team="ml"', None, False),
        ('team=""', None, True),
        ("team=ml", "ml", True),
        (' team != "ml" ', "ops", True),
        ('team!="ml"', "ml", False),
        ('team!="ml"', None, True),
        ('team=~"ml|ops"', "ops", True),
        ('team=~"ml|ops"', "ops2", False),
        ('team=~"ml"', "html", False),
        ('team=~".*"', None, True),
        ('team=~".+"', None, False),
        ('team!~"ml.*"', "mlops", False),
        ('team!~"ml.*"', "ops", True),
        ('team=~"m\\\\d"', "m7", True),
        ('team=~"ml"', "ml\n", False),
        ('team=~".*"', "x" * 257, False),  # longer than what is ever matched
        ('team="a\\"b\\n\\\\"', 'a"b\n\\', True),
        ('"team"="ml"', "ml", True),
    ],
)
def test_matchers_follow_alertmanagers_rules(matcher: str, team: str | None, accepted: bool) -> None:
    config = Config(matchers=(parse_matcher(matcher),))
    assert isinstance(mapped(alert(team=team), config), DriftEvent if accepted else Ignored)


def test_all_matchers_must_accept() -> None:
    config = Config(matchers=(parse_matcher('team="ml"'), parse_matcher('zone="eu"')))
    assert mapped(alert(team="ml"), config) == Ignored("matchers")
    assert isinstance(mapped(alert(team="ml", zone="eu"), config), DriftEvent)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "must be a matcher"),
        ("team", "must be a matcher"),
        ('team=="ml"', "must be a matcher"),
        ('team="a" zone="b"', "must be a matcher"),
        ('team="\\q"', "is no escape"),
        ('team=~"("', "not a regular expression"),
        ('team=~"[[:alpha:]]"', "neither"),
        ('team=~"(a)\\\\1"', "neither"),
        ('team=~"(?=a)"', "(?:"),
        ('team=~"(a+)+"', "may not be repeated"),
        ('team=~"(a|b)*"', "may not be repeated"),
        ('team=~"a++"', "may not be repeated"),
        ('team=~"(?:ab){3}"', "may not be repeated"),
        ('team=~"a*b*c*d*"', "more than 3"),
        ('team=~"(a*|x)(b*|y)(c*|z)(d*|w)"', "more than 3"),
        ('team=~"a?a?a?a?a?"', "more than 4"),
        ('team=~"[[a]"', "not a regular expression"),
        ('team=~"' + "a" * 257 + '"', "256"),
    ],
)
def test_a_matcher_that_could_run_away_or_mean_something_else_is_refused(text: str, cause: str) -> None:
    with pytest.raises(ValueError, match=re.escape(cause)):
        parse_matcher(text)


@pytest.mark.parametrize("pattern", ["a*b*|c*d*|e*f*", "[*+?{]", r"\*\*\*\*\*", "a{2}", "(ab|cd)?", "[]a*+?{(]+"])
def test_a_pattern_within_bounds_is_accepted(pattern: str) -> None:
    assert parse_matcher(f'team=~"{pattern}"'.replace("\\", "\\\\")).regex is not None


@pytest.mark.parametrize("pattern", [".*.*.*x", "a*a*a*b", "(a|a)?(a|a)?(a|a)?(a|a)?a*a*a*b"])
def test_the_worst_pattern_ends_soon(pattern: str) -> None:
    matcher = parse_matcher(f"team=~{pattern}")
    began = time.process_time()
    assert not matcher.accepts({"team": "a" * 256})
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("critical", "critical"),
        ("PAGE", "critical"),
        ("p1", "critical"),
        ("warn", "warning"),
        ("none", "info"),
        ("medium", "warning"),
        ("sev-2", "warning"),
        ("", "warning"),
        (None, "warning"),
        (" High ", "critical"),
    ],
)
def test_severities_in_use_are_translated(said: str | None, means: str) -> None:
    assert event(alert(severity=said)).severity == means


def test_less_severe_alerts_are_ignored() -> None:
    config = Config(min_severity="warning")
    assert mapped(alert(severity="info"), config) == Ignored("severity")
    assert event(alert(severity="warning"), config).severity == "warning"
    assert event(alert(severity="critical"), config).severity == "critical"


# --- fields ---


def test_an_alert_becomes_a_drift_event() -> None:
    found = alert({"summary": "s", "drift_score": "0.31", "dataset_uri": "s3://b/d/"}, url="http://p/", feature="age")
    assert event(found) == DriftEvent(
        firing=True,
        source="/alertmanager/default",
        environment="default",
        model="churn",
        version="7",
        fingerprint=found.fingerprint,
        starts_at=found.starts_at,
        seen=NOW,
        severity="warning",
        dataset_uri="s3://b/d/",
        score=0.31,
        feature="age",
        summary="s",
        generator_url="http://p/",
        labels=found.labels,
        traceparent=TRACE,
    )


def test_a_resolved_alert_keeps_its_end() -> None:
    found = event(alert(firing=False))
    assert (found.firing, found.ends_at) == (False, NOW)


@pytest.mark.parametrize("label", ["model_name", "model", "model.name", "model_id"])
def test_the_model_is_found_under_the_names_in_use(label: str) -> None:
    changes: dict[str, Any] = {"model_name": None, label: "fraud"}
    assert event(alert(**changes)).model == "fraud"


def test_the_first_name_that_is_there_wins() -> None:
    assert event(alert(model_name=None, model_id="b", model="a")).model == "a"


@pytest.mark.parametrize("label", ["endpoint", "service", "job", "namespace"])
def test_the_model_is_never_taken_from_scrape_labels(label: str) -> None:
    changes: dict[str, Any] = {"model_name": None, label: "fraud"}
    assert "model" in faults(alert(**changes))


def test_without_a_model_label_the_configured_default_holds() -> None:
    config = load("receiver: {model: {default: default}}")
    assert event(alert(model_name=None), config).model == "default"
    assert event(alert(), config).model == "churn"


@pytest.mark.parametrize(
    "name", ["a\x00b", "\x1b[31m", "\u202eabc", "a\u200bb", "модель", "a b", "../x", "-a", "a" * 64, "a/b", "{{x}}"]
)
def test_a_model_name_that_could_harm_is_rejected_and_escaped(name: str) -> None:
    what = faults(alert(model_name=name))["model"]
    assert what.isascii()
    assert what.isprintable()


def test_an_environment_that_is_no_name_is_rejected() -> None:
    assert "environment" in faults(alert(env="a b"))


def test_every_fault_of_an_alert_is_named() -> None:
    found = alert({"dataset_uri": "s3://b/" + "x" * 1024}, model_name="a b", environment="ü")
    assert set(faults(found)) == {"model", "environment", "dataset_uri"}


@pytest.mark.parametrize("version", ["v1.0-β", "a b", "x" * 64, None])
def test_a_version_that_is_no_name_is_unknown(version: str | None) -> None:
    assert event(alert(model_version=version)).version == "unknown"


@pytest.mark.parametrize(
    "dataset", ["iris", "s3:/x", "", "s3://", "s3://a b", "s3://a\x00", "S3://a", "://a", "s3://\x85"]
)
def test_a_dataset_that_is_no_uri_counts_as_absent(dataset: str) -> None:
    assert event(alert({"dataset_uri": dataset})).dataset_uri is None
    assert event(alert({"dataset_uri": dataset}, dataset="gs://b/x")).dataset_uri == "gs://b/x"


def test_of_two_datasets_the_annotation_wins() -> None:
    assert event(alert({"dataset_uri": "s3://b/a"}, dataset_uri="s3://b/b")).dataset_uri == "s3://b/a"


@pytest.mark.parametrize(
    ("text", "score"), [("0.5", 0.5), ("-1e3", -1000), ("nan", None), ("inf", None), ("high", None)]
)
def test_a_score_that_is_no_number_counts_as_absent(text: str, score: float | None) -> None:
    assert event(alert({"drift_score": text})).score == score


def test_without_a_summary_the_description_serves() -> None:
    assert event(alert({"description": "d"})).summary == "d"


def test_a_caller_speaks_only_for_its_environments() -> None:
    assert event(alert(env="prod"), environments={"prod", "x"}).environment == "prod"
    assert faults(alert(env="dev"), environments={"prod"}) == {"environment": "the caller may not speak for dev"}
    assert faults(alert(), environments={"prod"}) == {"environment": "the caller may not speak for default"}


@pytest.mark.parametrize("char", ["a", "\x01", "é", "🚀", '"'])
def test_an_event_stays_under_64_kib_and_says_what_was_cut(char: str) -> None:
    long: dict[str, Any] = {f"label_{index}": char * 300 for index in range(500)} | {"huge": char * 100_000}
    found = event(alert({"summary": char * 100_000, "dataset_uri": "s3://b/" + "x" * 1000}, url=char * 5000, **long))
    headers, body = encode(to_cloudevent(found, b"key"))
    assert len(body) + sum(len(name) + len(value) for name, value in headers.items()) < 64 * 1024
    assert found.truncated
    assert found.labels["alertname"] == "ModelDrift"
    assert found.generator_url == ""


def test_what_fits_is_not_cut() -> None:
    many: dict[str, Any] = {f"label_{index}": "v" for index in range(500)}
    found = event(alert(**many))
    assert not found.truncated
    assert len(found.labels) == 504


@given(
    st.dictionaries(st.text(max_size=30), st.text(max_size=300), max_size=20),
    st.dictionaries(st.sampled_from(["summary", "dataset_uri", "drift_score"]), st.text(max_size=300)),
    st.text(max_size=3000),
)
@settings(max_examples=200)
def test_whatever_an_alert_says_it_is_mapped_or_rejected(
    own: dict[str, str], annotations: dict[str, str], url: str
) -> None:
    found = {name: value for name, value in (labels() | own).items() if value}
    result = mapped(Alert(True, found, annotations, NOW, None, url, fingerprint(found)))
    if isinstance(result, DriftEvent):
        assert len(canonical_json(dict(result.labels))) < 32 * 1024
        assert to_cloudevent(result).subject.isascii()
    elif isinstance(result, Rejected):
        assert result.faults


# --- the configuration ---

FULL = r"""
receiver:
  source: eu-1
  alertnames: [ModelDrift, ModelDriftDetected]
  matchers: ['team="ml"', 'zone=~"eu-.*"']
  min_severity: warning
  severities: {sev1: critical, Noise: info}
  severity: {labels: [priority], default: info}
  model: {labels: [model_name], default: null}
  model_version: {labels: [v], default: unknown}
  environment: {labels: [stage], annotations: [stage], default: dev}
  dataset_uri: {annotations: [data], labels: [data]}
  score: {annotations: [psi]}
  feature: {labels: [column]}
  paths:
    /alertmanager: {environments: [production]}
    /alertmanager/staging: {environments: ["*"]}
  credentials:
    - {name: prod, bearer_file: /run/token, environments: [production], paths: [/alertmanager]}
    - {name: stage, user: am, password_file: /run/password}
"""


def test_a_full_configuration_is_read() -> None:
    config = load(FULL)
    assert config.source == "eu-1"
    assert config.alertnames == {"ModelDrift", "ModelDriftDetected"}
    assert config.matchers[0] == Matcher("team", "=", "ml")
    assert config.severities["sev1"] == "critical"
    assert config.severities["noise"] == "info"
    assert config.severities["page"] == "critical"
    assert config.environment.places == ((False, "stage"), (True, "stage"))
    assert config.environment.default == "dev"
    assert config.model.default is None
    assert config.paths == {"/alertmanager": {"production"}, "/alertmanager/staging": EVERY}
    prod, stage = config.credentials
    assert (prod.name, prod.user, prod.file) == ("prod", None, Path("/run/token"))
    assert prod.environments == {"production"}
    assert (stage.name, stage.user, stage.paths) == ("stage", "am", EVERY)


def test_the_default_is_the_documented_mapping() -> None:
    documented = """
    receiver:
      alertnames: [ModelDrift]
      model:         {labels: [model_name, model, model.name, model_id], default: null}
      model_version: {labels: [model_version, model.version], default: unknown}
      environment:   {labels: [environment, env, deployment.environment.name], default: default}
      dataset_uri:   {annotations: [dataset_uri, dataset], labels: [dataset_uri, dataset]}
      score:         {annotations: [drift_score]}
      feature:       {labels: [feature_name, feature, subcategory]}
    """
    assert load(documented) == Config() == section(None) == load("receiver:") == section({})


def test_what_a_field_leaves_out_keeps_its_default() -> None:
    config = section({"environment": {"labels": ["stage"]}})
    assert config.environment.default == "default"


def test_an_explicit_null_takes_the_default_away() -> None:
    config = section({"environment": {"default": None}})
    assert "environment" in faults(alert(), config)


BAD = """
receiver:
  source: a b
  alertnames: []
  matchers: ["team", 'x=~"("', 7]
  min_severity: high
  severities: {x: loud}
  severity: {default: loud}
  model: {label: [x], default: a b}
  score: [drift_score]
  feature: {labels: [1]}
  paths: {/alertmanager/: {}, /other: {environments: [a b]}, /alertmanager: {environment: x}}
  credentials:
    - {name: a, bearer_file: /x, user: u}
    - {name: b, user: "a:b", password_file: /x}
    - {bearer_file: 7}
    - {name: c}
    - {name: d, password_file: /x}
    - {name: e, bearer_file: /x, environments: [a b], paths: [1]}
    - {name: f, bearer_file: /x, nickname: f}
    - 7
  dataset_uri: {default: s3://a/b}
  model_version: {default: 7}
  extra: 1
"""


def test_every_fault_of_a_configuration_is_named_at_once_by_its_path() -> None:
    with pytest.raises(Permanent) as caught:
        load(BAD)
    text = "must be text (quote numbers, yes and no)"
    name = "must match [A-Za-z0-9][A-Za-z0-9._-]{0,62}"
    severity = "must be one of info, warning, critical"
    kinds = "needs either bearer_file, or user and password_file"
    assert caught.value.faults == {
        "receiver.source": name,
        "receiver.alertnames": "must be a list that is not empty",
        "receiver.matchers[0]": 'must be a matcher such as team="ml" or severity=~"warning|critical"',
        "receiver.matchers[1]": "not a regular expression: missing ), unterminated subpattern at position 0",
        "receiver.matchers[2]": text,
        "receiver.min_severity": severity,
        "receiver.severities.x": severity,
        "receiver.severity.default": severity,
        "receiver.model.label": "unknown; there are labels, annotations, default",
        "receiver.model.default": name,
        "receiver.model_version.default": text,
        "receiver.dataset_uri.default": "unknown; there are labels, annotations",
        "receiver.score": "must be a mapping",
        "receiver.feature.labels[0]": text,
        "receiver.paths./alertmanager/": "must be /, /alertmanager or /alertmanager/<name>",
        "receiver.paths./other": "must be /, /alertmanager or /alertmanager/<name>",
        "receiver.paths./other.environments[0]": name.replace("must match", "must be * or match"),
        "receiver.paths./alertmanager.environment": "unknown; there are environments",
        "receiver.credentials": "each needs a name of its own",
        "receiver.credentials[0]": kinds,
        "receiver.credentials[0].password_file": text,
        "receiver.credentials[1].user": "a user's name has no colon in basic authentication",
        "receiver.credentials[2].name": text,
        "receiver.credentials[2].bearer_file": text,
        "receiver.credentials[3]": kinds,
        "receiver.credentials[3].bearer_file": text,
        "receiver.credentials[4].user": text,
        "receiver.credentials[5].environments[0]": name.replace("must match", "must be * or match"),
        "receiver.credentials[5].paths[0]": text,
        "receiver.credentials[6].nickname": (
            "unknown; there are name, bearer_file, user, password_file, environments, paths"
        ),
        "receiver.credentials[7]": kinds,
        "receiver.credentials[7].name": text,
        "receiver.credentials[7].bearer_file": text,
        "receiver.extra": "unknown; there are " + ", ".join(field.name for field in fields(Config)),
    }


@pytest.mark.parametrize(
    ("section_text", "fault"),
    [
        ("severities: 7", {"receiver.severities": "must be a mapping"}),
        ("severity: 7", {"receiver.severity": "must be a mapping"}),
        ("environment: {labels: []}", {"receiver.environment.labels": "must be a list that is not empty"}),
        ("paths: {}", {"receiver.paths": "must name at least one path"}),
        ("paths: 7", {"receiver.paths": "must be a mapping"}),
        ("credentials: {}", {"receiver.credentials": "must be a list"}),
        (
            "paths: {/alertmanager: {environments: 7}}",
            {"receiver.paths./alertmanager.environments": "must be a list that is not empty"},
        ),
        ("credentials: [{name: a b, bearer_file: /x}]", {"receiver.credentials[0].name": "must match " + NAME.pattern}),
        (
            "{paths: {/alertmanager/a: {}}, credentials: [{name: a, bearer_file: /x, paths: [/alertmanager]}]}",
            {"receiver.credentials.a.paths": "/alertmanager is none of receiver.paths"},
        ),
    ],
)
def test_a_fault_says_where_it_is(section_text: str, fault: dict[str, str]) -> None:
    with pytest.raises(Permanent) as caught:
        load("receiver: " + (section_text if section_text.startswith("{") else "{" + section_text + "}"))
    assert caught.value.faults == fault
    assert str(caught.value).startswith("bad configuration: ")


def test_a_rejected_alert_keeps_what_could_be_read_of_it() -> None:
    found = alert(model_name=None)
    result = mapped(found)
    assert result == Rejected(
        {"model": "missing: no label of the mapping names it, and there is no default"},
        {"status": "firing"},
        found.labels,
        found.fingerprint,
    )
    resolved = mapped(alert(model_name=None, firing=False))
    assert isinstance(resolved, Rejected)
    assert resolved.status == "resolved"
    assert faults(alert(model_name="x" * 100)) == {"model": f"'{'x' * 80}' must match {NAME.pattern}"}


def test_a_location_may_be_just_as_long_as_its_bound() -> None:
    longest = "s3://b/" + "x" * (MAX_URI - 7)
    assert event(alert({"dataset_uri": longest})).dataset_uri == longest
    assert faults(alert({"dataset_uri": longest + "x"})) == {"dataset_uri": f"longer than {MAX_URI} characters"}


def test_a_severity_that_nobody_knows_is_the_default() -> None:
    assert event(alert(severity="purple")).severity == "warning"
    assert event(alert(severity=None)).severity == "warning"
    config = section({"severity": {"default": "critical"}})
    assert event(alert(severity="purple"), config).severity == "critical"
    config = section({"severity": {"default": None}})
    assert event(alert(severity="purple"), config).severity == "warning"
    assert event(alert(severity=None), config).severity == "warning"


@pytest.mark.parametrize(
    ("kept", "one_more"),
    [
        (alert({"summary": "s" * MAX_SUMMARY}), alert({"summary": "s" * (MAX_SUMMARY + 1)})),
        (alert(url="u" * MAX_URL), alert(url="u" * (MAX_URL + 1))),
        (alert(feature="f" * MAX_FEATURE), alert(feature="f" * (MAX_FEATURE + 1))),
    ],
    ids=["summary", "generatorURL", "feature"],
)
def test_text_is_cut_just_above_its_bound_and_that_is_said(kept: Alert, one_more: Alert) -> None:
    whole, cut = event(kept), event(one_more)
    assert (whole.truncated, cut.truncated) == (False, True)
    assert len(whole.summary) in (0, MAX_SUMMARY)
    assert len(whole.generator_url) in (0, MAX_URL)
    assert whole.generator_url == kept.generator_url
    assert cut.generator_url == ""
    assert len(cut.summary) in (0, MAX_SUMMARY)
    assert len(cut.feature or "") in (0, MAX_FEATURE)


def test_a_file_without_the_section_is_no_configuration() -> None:
    with pytest.raises(Permanent) as caught:
        load("receivers: {}")
    assert str(caught.value) == "bad configuration: receiver: missing"


@pytest.mark.parametrize(
    ("pattern", "cause"),
    [
        ("(?i)a", r"of (? only (?: is known, and neither \1, \p, \A, \z, \Q nor [[: is"),
        ("(a)+", "a group may not be repeated, nor a repetition: write the alternatives out"),
    ],
)
def test_what_is_wrong_with_a_pattern_is_said(pattern: str, cause: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(cause) + "$"):
        parse_matcher(f'x=~"{pattern}"')


def test_without_a_summary_there_is_none() -> None:
    assert event(alert()).summary == ""


def test_labels_are_kept_from_the_shortest_up_to_the_very_limit() -> None:
    texts = {"a": "3" * 30, "z": "1", "yy": "22"}
    exact = sum(len(canonical_json([name, texts[name]])) + 2 for name in ("z", "yy"))
    assert dict(bounded(texts, exact)) == {"z": "1", "yy": "22"}
    assert dict(bounded(texts, exact - 1)) == {"z": "1"}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "must hold a mapping"),
        ("[]", "must hold a mapping"),
        ("receivers: {}", "receiver: missing"),
        ("receiver: []", "receiver: must be a mapping"),
        ("receiver: {source: a, source: b}", "duplicate key source"),
        ("receiver: {1: a}", "every key must be text"),
        ("receiver: {[a]: b}", "every key must be text"),
        ("a: &x [1]\nreceiver: *x", "aliases"),
        ("receiver: !!python/object/apply:os.getcwd []", "not a YAML file"),
        ("receiver: {", "not a YAML file"),
        ("receiver: " + "[" * 2000, "nested too deeply"),
        ("receiver: 2026-99-99", "not a YAML file"),
        ("#" * 300_000, "larger than"),
        ("receiver: {paths: {}}", "at least one path"),
        ("receiver: {paths: []}", "must be a mapping"),
        ("receiver: {credentials: {}}", "must be a list"),
        ("receiver: {credentials: [{name: a, bearer_file: /x}, {name: a, bearer_file: /y}]}", "a name of its own"),
        ("receiver: {credentials: [{name: a, bearer_file: /x, paths: [/y]}]}", "/y is none of receiver.paths"),
        ("receiver: {alertnames: [yes]}", "must be text (quote"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(text: str, cause: str) -> None:
    with pytest.raises(Permanent) as caught:
        load(text)
    assert cause in str(caught.value)
    assert caught.value.exit_code == 64


configs = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.sampled_from(["critical", "/alertmanager"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["labels", "annotations", "default", "name", "environments", "/"]), inner)
    ),
    max_leaves=6,
)
keys = ["source", "alertnames", "matchers", "min_severity", "severities", "severity", "model", "paths", "credentials"]


@given(st.dictionaries(st.sampled_from(keys), configs, max_size=4))
def test_whatever_a_section_holds_it_is_a_configuration_or_named_faults(value: dict[str, Any]) -> None:
    try:
        assert isinstance(section(value), Config)
    except Permanent as exc:
        assert exc.faults  # noqa: PT017  # either outcome is right


@given(st.text(alphabet='team="~!\\|()[]{}*+?ab.^$', max_size=30))
def test_whatever_a_matcher_says_it_is_a_matcher_or_refused(text: str) -> None:
    try:
        parse_matcher(text).accepts({"team": "ab" * 20})
    except ValueError as exc:
        assert str(exc)  # noqa: PT017  # either outcome is right


@pytest.mark.parametrize("token", list(r"123456789pPCQzZkgGAXR"))
def test_what_means_another_thing_to_alertmanager_is_no_pattern(token: str) -> None:
    with pytest.raises(ValueError, match=r"only \(\?: is known"):
        parse_matcher('x=~"\\\\' + token + '"')


def test_a_pattern_may_be_just_as_long_as_its_bound_and_knows_ascii_only() -> None:
    assert parse_matcher(f'x=~"{"a" * MAX_PATTERN}"').accepts({"x": "a" * MAX_PATTERN})
    with pytest.raises(ValueError, match=f"may have {MAX_PATTERN} characters"):
        parse_matcher(f'x=~"{"a" * MAX_PATTERN}a"')
    assert not parse_matcher(r'x=~"\\w"').accepts({"x": "\u00e9"})
    assert parse_matcher('x=~".*"').accepts({"x": "a" * MAX_MATCHED})
    assert not parse_matcher('x=~".*"').accepts({"x": "a" * (MAX_MATCHED + 1)})


def test_a_line_end_cannot_be_escaped() -> None:
    with pytest.raises(ValueError, match="is no escape"):
        parse_matcher('x="a\\\nb"')
