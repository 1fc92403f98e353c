"""The adapter to func-python by itself: what a host cannot be made to do, and no exception that leaves it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from aegis.errors import USAGE, Permanent
from aegis.func_python import Hosted
from aegis.http import Function, Request, Response
from aegis.telemetry import Metrics

SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": [], "client": ("192.0.2.1", 4711)}
END = {"type": "http.request", "body": b"", "more_body": False}


class Broken(Function):
    """A function with a fault in a place where nobody foresaw one."""

    async def handle(self, request: Request) -> Response:  # noqa: ARG002  # the signature of the real one
        raise RuntimeError("the password is sesame")


class Waiting(Function):
    """A function whose health waits for something, which the host cannot."""

    async def handle(self, request: Request) -> Response:  # noqa: ARG002  # as above
        await asyncio.sleep(0)
        return Response(200)


def function(kind: type[Function] = Function, answer: Response | None = None) -> Function:
    async def handler(request: Request) -> Response:
        seen.append(request)
        return answer or Response(200, await request.read(10, within_s=1))

    async def status() -> Mapping[str, str]:
        return {}

    seen.clear()
    return kind(
        {"/": (["POST"], handler)}, Metrics("test"), problems=list, status=status, max_in_flight=9, deadline_s=9
    )


seen: list[Request] = []


def call(hosted: Hosted, messages: Iterable[Mapping[str, Any]] = (END,), **scope: Any) -> list[dict[str, Any]]:
    """The messages that the adapter sends for one request."""
    sent: list[dict[str, Any]] = []
    waiting = iter(messages)

    async def receive() -> Mapping[str, Any]:
        return next(waiting)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(hosted.handle({**SCOPE, **scope}, receive, send))
    return sent


def test_a_body_arrives_whole_and_the_answer_has_a_length() -> None:
    parts = [{"type": "http.request", "body": part, "more_body": True} for part in (b"ab", b"", b"c")]
    start, body = call(Hosted(function), [*parts, END])
    assert start == {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]}
    assert body == {"type": "http.response.body", "body": b"abc"}


def test_an_acknowledgement_has_neither_body_nor_length() -> None:
    start, body = call(Hosted(lambda: function(answer=Response(204))))
    assert (start["headers"], body["body"]) == ([], b"")


def test_repeated_headers_are_joined_and_names_are_lower_case() -> None:
    call(Hosted(function), headers=[(b"X-One", b"1"), (b"x-one", b"\xe9")])
    assert seen[0].headers == {"x-one": "1, é"}
    assert seen[0].peer == "192.0.2.1"


def test_a_caller_without_an_address_is_not_on_loopback() -> None:
    call(Hosted(function), client=None)
    assert not seen[0].loopback


def test_a_caller_that_leaves_is_no_failure_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    start, _ = call(Hosted(function), [{"type": "http.disconnect"}])
    assert start["status"] == 503
    assert caplog.records == []


def test_what_an_early_answer_left_unread_is_read_before_it_goes_out() -> None:
    left = iter([{"type": "http.request", "body": b"x", "more_body": True}, END])
    assert call(Hosted(function), left, path="/nothing")[0]["status"] == 404
    assert list(left) == []


def test_an_endless_body_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis.func_python.DRAIN_LIMIT", 3)
    left = iter([{"type": "http.request", "body": b"xx", "more_body": True}] * 4)
    assert call(Hosted(function), left, path="/nothing")[0]["status"] == 404
    assert len(list(left)) == 2


def test_a_body_that_stalls_does_not_keep_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis.func_python.DRAIN_WITHIN_S", 0.01)
    sent: list[dict[str, Any]] = []

    async def receive() -> Mapping[str, Any]:
        return await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(Hosted(function).handle({**SCOPE, "path": "/nothing"}, receive, send))
    assert sent[0]["status"] == 404


def test_no_exception_leaves_it(caplog: pytest.LogCaptureFixture) -> None:
    hosted = Hosted(lambda: function(Broken))
    with caplog.at_level(logging.ERROR):
        assert call(hosted) == []
        assert hosted.alive() == hosted.ready() == (False, "unexpected failure; see the log\n")
    assert [record.message for record in caplog.records] == ["unexpected failure"] * 3
    assert "sesame" in caplog.text


def test_an_answer_that_cannot_be_sent_is_for_the_log(caplog: pytest.LogCaptureFixture) -> None:
    bad = Response(200, b"", {"x-bad": "\u0100"})
    assert call(Hosted(lambda: function(answer=bad))) == []
    assert "unexpected failure" in caplog.text


def test_health_that_waits_counts_as_failed() -> None:
    assert Hosted(lambda: function(Waiting)).ready() == (False, "unexpected failure; see the log\n")


def test_health_is_that_of_the_function() -> None:
    hosted = Hosted(function)
    assert (hosted.alive(), hosted.ready()) == ((True, "alive\n"), (True, "ready\n"))


def test_settings_that_make_no_function_end_the_process() -> None:
    def make() -> Function:
        raise Permanent("bad settings", {"AEGIS_X": "missing"}, exit_code=USAGE)

    with pytest.raises(SystemExit) as ended:
        Hosted(make)
    assert "AEGIS_X" in str(ended.value.code)
