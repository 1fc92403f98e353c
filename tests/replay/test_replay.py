"""What real Alertmanagers sent, played again in its order and times: which retrains come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.replay.recordings import CAPTURES, Replay, deliveries, expected, stretched

EXPECTED: dict[str, list[str]] = expected()["models"]
RELAXED = {"cooldown": "1m", "maxAttempts": 100}
FACTOR = 50
"""The recorders used seconds where people use minutes (a group_interval of 6 s stands for the default's 5 min)."""

# The second run: policies with the shortest cooldown and the most attempts that a policy may have, every retrain ends
# at once as Rejected, and time is stretched, so that recordings outlast the cooldown. Then a firing delivery trains
# again if it is newer than the end of the last retrain by more than the two minutes that clocks may be apart, which is
# 2.4 s of the recording. Times in the arguments are seconds of the recording. A model that is not named has one.
ARGUED: dict[str, tuple[dict[str, int], str]] = {
    "s01-single-firing-am0.25.0": ({"churn": 1}, "one delivery, one retrain; it never says again that it fires"),
    "s02-group-of-20-models-am0.25.0": ({}, "twenty models in one delivery: one each"),
    "s03-firing-then-resolved-am0.25.0": ({"churn": 1}, "fires once; the resolve at 2.0 never trains"),
    "s04-mixed-firing-resolved-am0.25.0": ({"churn": 1, "fraud": 1, "ranker": 1},
        "churn ends at 2.0; fraud's repeat at 2.0 is within the slack; ranker is new at 2.0"),
    "s05-max-alerts-truncated-am0.25.0": ({"m0": 3, "m1": 3},
        "the same two alerts at 0, 8 and 16, each long after the last end; the truncated ones never arrive"),
    "s06-empty-annotation-value-am0.25.0": ({"emptyval": 1}, "one delivery"),
    "s06-empty-annotations-am0.25.0": ({"empty": 1}, "one delivery"),
    "s06-empty-label-value-am0.25.0": ({"emptylabel": 1}, "one delivery"),
    "s06-future-start-am0.25.0": ({"future": 1}, "one delivery; its start an hour ahead counts as now"),
    "s06-no-alertname-am0.25.0": ({}, "not ours without the name"),
    "s06-no-generator-url-am0.25.0": ({"nogen": 1}, "one delivery"),
    "s06-no-labels-but-one-am0.25.0": ({}, "its one label is not a name of ours"),
    "s06-odd-label-names-classic-am0.25.0": ({"oddclassic": 1}, "one delivery"),
    "s06-unicode-am0.25.0": ({}, "the name is outside the allow-list: a dead letter"),
    "s07-repeat-interval-am0.25.0": ({"churn": 3}, "a repeat each 6 s: 0, 6 and 12 are all evidence after an end"),
    "s08-refire-after-resolve-am0.25.0": ({"churn": 2}, "0; the resolve at 2 none; the new episode seen at 6"),
    "s08b-flap-inside-group-interval-am0.25.0": ({"churn": 2}, "0 and the delivery at 18, whose start moved to 1.6"),
    "s08d-startsat-offset-and-nanos-am0.25.0": ({"churn": 2}, "0 and the repeat at 6; an old start is no old news"),
    "s09a-ha-healthy-am0.25.0": ({"churn": 1}, "a healthy pair delivers once"),
    "s09c-ha-503-am0.25.0": ({"churn": 5},
        "both replicas retry, 17 deliveries: 0, 3.0, 5.45, 9.82 and 12.27 are each the first beyond 2.4 s"),
    "s09e-ha-partition-heals-am0.25.0": ({"churn": 3}, "0; its copy at 0.2 none; 10.8; 22.8"),
    "s09f-ha-restarts-am0.25.0": ({"churn": 2}, "0 and the repeat at 24.2"),
    "s10a-real-fire-repeat-resolve-refire-prom2.42.0-am0.25.0": ({"churn": 3},
        "0; the repeat at 6; the resolve at 8 none; the new episode at 14"),
    "s10b-prometheus-quick-restart-prom2.42.0-am0.25.0": ({"churn": 4},
        "0, 6, 12, 18: a restart of Prometheus that Alertmanager bridges looks like repeats"),
    "s10d-exporter-down-prom2.42.0-am0.25.0": ({"churn": 2},
        "0; the false end at 4 none; the false new episode at 10; ModelDriftHeld is another alert's name"),
    "s10f-ha-prometheus-replica-dropped-prom2.42.0-am0.25.0": ({"churn": 2}, "0 and the repeat at 6"),
    "s10f-ha-prometheus-replica-kept-prom2.42.0-am0.25.0": ({"churn": 2},
        "two fingerprints of one model are one model's evidence: 0 and the repeat at 6, not twice as many"),
    "s10i-for3s-both-killed-prom2.42.0-am0.25.0": ({"churn": 3}, "0; 9.5 with a new start; its repeat at 15.5"),
    "s10j-rule-edited-prom2.42.0-am0.25.0": ({"churn": 2},
        "0; at 6 the edited rule's alert and the old one, together one; at 8 within the slack, the old one ends"),
    "s10k-rule-annotation-edited-prom2.42.0-am0.25.0": ({"churn": 1}, "one delivery"),
    "s11b-redirects-am0.25.0": ({}, "307 and 308 post a second copy within 0.01 s; the others come once: one each"),
    "s12-config-reload-am0.25.0": ({"churn": 3}, "0, 7 and 13: after a reload the same alert comes again"),
    "s13-am-restart-am0.25.0": ({"churn": 2}, "0 and again at 12.9 after the restart"),
    "s13b-resolved-while-am-down-am0.25.0": ({"churn": 1}, "fires once; the resolve at 1.8 never trains"),
    "s13c-am-and-prom-restart-new-startsat-am0.25.0": ({"churn": 1}, "one delivery"),
    "s13e-answer-lost-am0.25.0": ({"churn": 1}, "the retry after 0.5 s is within the slack"),
    "s14-group-grows-am0.25.0": ({"churn": 2, "fraud": 1, "ranker": 1},
        "churn at 0 and 4, its copy at 2 within the slack; fraud at 2, its copy at 4 within; ranker at 4"),
    "s15-send-resolved-false-am0.25.0": ({"churn": 1, "fraud": 1, "ranker": 1},
        "churn's end is never told, but nor does it fire again; fraud's repeat at 2 is within the slack"),
    "s16-two-routes-two-webhooks-am0.25.0": ({"churn": 1}, "four copies within 0.01 s"),
    "s17-auth-headers-am0.25.0": ({"bearer-file": 2}, "bearer-file comes again at 3.0, with a second alert: one more"),
    "s17t-mtls-am0.25.0": ({"churn": 1}, "one delivery"),
    "s18a-outage-covers-whole-episode-am0.25.0": ({"churn": 4}, "retries at 0, 3.0, 6.0 and 8.9 are beyond 2.4 s"),
    "s18b-outage-during-resolve-am0.25.0": ({"churn": 1}, "fires once; thirteen resolves never train"),
    "s18c-400-then-fixed-am0.25.0": ({"churn": 5}, "sent again at 0, 3, 6, 9 and 12"),
}  # fmt: skip


def test_every_listed_recording_is_here_and_argued() -> None:
    assert {path.stem for path in CAPTURES.glob("s*.json")} == set(EXPECTED)
    assert set(ARGUED) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_under_the_default_policy_each_model_that_fires_gets_one_retrain(name: str, tmp_path: Path) -> None:
    replay = Replay(tmp_path)
    replay.play(deliveries(name), EXPECTED[name], lambda: None)
    assert replay.retrains() == dict.fromkeys(EXPECTED[name], 1)
    _no_wrong_hold(replay, EXPECTED[name], {"InFlight", "NotFiring"})


@pytest.mark.parametrize("name", EXPECTED)
def test_under_a_relaxed_policy_in_real_time_the_clocks_slack_still_makes_it_one(name: str, tmp_path: Path) -> None:
    """Each recording is shorter than the two minutes that clocks may be apart: nothing in it is new evidence."""
    replay = Replay(tmp_path, RELAXED)
    replay.play(deliveries(name), EXPECTED[name], replay.reject_all)
    assert replay.retrains() == dict.fromkeys(EXPECTED[name], 1)


@pytest.mark.parametrize("name", EXPECTED)
def test_under_a_relaxed_policy_in_stretched_time_the_numbers_are_as_argued(name: str, tmp_path: Path) -> None:
    wanted = deliveries(name)
    replay = Replay(tmp_path, RELAXED)
    replay.play(stretched(wanted, FACTOR) if len(wanted) > 1 else wanted, EXPECTED[name], replay.reject_all)
    numbers, why = ARGUED[name]
    argued = {**dict.fromkeys(EXPECTED[name], 1), **{f"default/{model}": count for model, count in numbers.items()}}
    assert replay.retrains() == argued, why
    _no_wrong_hold(replay, EXPECTED[name], {"InFlight", "NoNewEvidence", "NotFiring", "Cooldown"})


@pytest.mark.parametrize("name", EXPECTED)
def test_a_whole_recording_played_twice_at_once_adds_nothing(name: str, tmp_path: Path) -> None:
    """Two webhooks, or a pair of Alertmanagers that cannot see each other: every delivery has a twin."""
    replay = Replay(tmp_path)
    replay.play([twin for one in deliveries(name) for twin in (one, one)], EXPECTED[name], lambda: None)
    assert replay.retrains() == dict.fromkeys(EXPECTED[name], 1)


def _no_wrong_hold(replay: Replay, models: list[str], allowed: set[str]) -> None:
    for model in models:
        environment, _, name = model.partition("/")
        status = replay.world.record(name, environment).status
        assert {row.reason for row in status.history if row.kind == "Hold"} <= allowed
        conditions: dict[str, Any] = {condition.type: condition.holds for condition in status.conditions}
        assert not conditions["NeedsHuman"]
        assert not conditions["Stuck"]
