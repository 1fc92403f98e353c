"""Which dataset locations an alert may name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.datasets import fault, prefix_fault
from aegis.storage import Location


@pytest.mark.parametrize("uri", ["s3://b-1/data/x", "s3://b-1/data/x/", "s3://b-1/data", "s3://b-1/data/v=2/a.npz"])
def test_what_lies_below_a_prefix_is_allowed(uri: str) -> None:
    assert fault(uri, ["s3://b-1/data/"]) is None


@pytest.mark.parametrize(
    "uri",
    ["s3://b-1/data-secret/x", "s3://b-1/dat", "s3://other/data/x", "gs://b-1/data/x", "s3://b-1/data/../x",
     "s3://b-1/data/%2e%2e/x", "s3://b-1/data/{{x}}", "s3://b-1/data//x", "s3://b-1/data/.hidden", "s3://b-1/data/x\n",
     "http://b-1/data/x", "", "s3://b-1/data/" + 1024 * "x"],
)  # fmt: skip
def test_what_lies_elsewhere_or_is_no_plain_path_is_not(uri: str) -> None:
    assert fault(uri, ["s3://b-1/data/"])


def test_without_prefixes_nothing_is_allowed_and_the_message_says_so() -> None:
    assert "none is configured" in (fault("s3://b-1/data/x", []) or "")


@pytest.mark.parametrize("prefix", ["s3:///x", "https://b/x", "s3://b-1/../x", "s3://b-1/%2e", "file://host/x", "data"])
def test_an_operators_prefix_has_to_be_a_location(prefix: str) -> None:
    assert prefix_fault(prefix)
    assert fault(prefix + "/x", [prefix])


@given(st.text(max_size=60), st.sampled_from(["s3://b-1/data", "s3://b-1/data/", "file:///data", ""]))
def test_what_is_allowed_can_be_opened_and_climbs_nowhere(text: str, head: str) -> None:
    prefixes = ["s3://b-1/data", "file:///data"]
    if fault(head + text, prefixes) is None:
        assert Location.parse(head + text).segments[0] == "data"
        assert ".." not in Location.parse(head + text).segments
