"""The client that posts events, against a real server on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import Temporary
from aegis.events import CloudEvent
from aegis.http import SecretFile
from alert_receiver.sink import MAX_ANSWER, HttpSink, Refused
from tests.receiver.http_server import HttpServer, http_server
from tests.receiver.world import NOW

EVENT = CloudEvent(
    type="t", source="/s", id="1", subject="a/b", time=NOW, data=b'{"a":1}', extensions={"severity": "info"}
)


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with http_server() as running:
        yield running


@asynccontextmanager
async def sink_to(url: str, **options: Any) -> AsyncIterator[HttpSink]:
    sink = HttpSink(url, **({"concurrency": 16, "timeout_s": 5.0} | options))
    try:
        yield sink
    finally:
        await sink.close()


def send(url: str, times: int = 1, **options: Any) -> None:
    async def all_of_them() -> None:
        async with sink_to(url, **options) as sink:
            for _ in range(times):
                await sink.send(EVENT)

    asyncio.run(all_of_them())


def test_an_event_is_posted_in_binary_mode(server: HttpServer) -> None:
    send(server.url)
    (got,) = server.got
    assert (got.path, got.body) == ("/broker", b'{"a":1}')
    wanted = {"ce-id": "1", "ce-type": "t", "ce-source": "/s", "ce-subject": "a/b", "ce-severity": "info"}
    assert wanted.items() <= got.headers.items()
    assert got.headers["content-type"] == "application/json"


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_2xx_is_taken_for_stored(server: HttpServer, status: int) -> None:
    server.answer = lambda _: (status, {}, b"")
    send(server.url)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_event_at_fault_is_refused(server: HttpServer, status: int) -> None:
    server.answer = lambda _: (status, {}, b"no")
    with pytest.raises(Refused, match=str(status)):
        send(server.url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_may_be_tried_again(server: HttpServer, status: int) -> None:
    server.answer = lambda _: (status, {"location": f"http://127.0.0.1:{server.port}/else"}, b"")
    with pytest.raises(Temporary, match=str(status)):
        send(server.url)
    assert [got.path for got in server.got] == ["/broker"]


@pytest.mark.parametrize("status", [401, 403, 404, 405, 408, 409, 415, 429, 500, 502, 503])
def test_any_other_answer_may_be_tried_again(server: HttpServer, status: int) -> None:
    server.answer = lambda _: (status, {}, b"")
    with pytest.raises(Temporary, match=str(status)):
        send(server.url)


def test_a_sink_that_is_not_there_may_be_tried_again() -> None:
    with http_server() as gone:
        url = gone.url
    with pytest.raises(Temporary, match="cannot be reached"):
        send(url)


def test_a_host_without_a_name_may_be_tried_again() -> None:
    with pytest.raises(Temporary, match="cannot be reached"):
        send("http://broker.invalid/")


def test_a_slow_sink_is_given_up_in_time(server: HttpServer) -> None:
    def slow(_: object) -> None:
        time.sleep(0.5)

    server.answer = slow
    with pytest.raises(Temporary, match=r"within 0\.1 s"):
        send(server.url, timeout_s=0.1)


def test_one_connection_is_kept(server: HttpServer) -> None:
    send(server.url, times=5)
    assert len({got.connection for got in server.got}) == 1


def test_an_answer_that_never_ends_costs_the_connection_only(server: HttpServer) -> None:
    server.answer = lambda _: (202, {}, b"x" * (4 * MAX_ANSWER))
    send(server.url, times=2)
    assert len(server.got) == 2


def test_a_kept_connection_that_the_sink_closed_is_replaced(server: HttpServer) -> None:
    dropped = []

    def drop_second(got: object) -> tuple[int, dict[str, str], bytes] | None:
        if len(server.got) == 2:
            dropped.append(got)
            return None
        return 202, {}, b""

    server.answer = drop_second
    send(server.url, times=2)
    assert (len(dropped), len(server.got)) == (1, 3)


def test_a_sink_that_always_drops_is_tried_twice_and_no_more(server: HttpServer) -> None:
    server.answer = lambda _: None
    with pytest.raises(Temporary, match="cannot be reached"):
        send(server.url)
    assert len(server.got) == 2


def test_no_more_than_allowed_are_in_flight_at_once(server: HttpServer) -> None:
    def slow(_: object) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.02)
        return 202, {}, b""

    server.answer = slow

    async def many() -> None:
        async with sink_to(server.url, concurrency=4) as sink:
            await asyncio.gather(*[sink.send(EVENT) for _ in range(20)])

    asyncio.run(many())
    assert len(server.got) == 20
    assert 2 <= server.most_at_once <= 4


def test_overrides_of_the_binding_are_added(server: HttpServer) -> None:
    send(server.url, extensions={"cluster": "eu 1"})
    assert server.got[0].headers["ce-cluster"] == "eu%201"


def test_a_token_is_sent_and_read_again_when_it_changes(server: HttpServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n")
    clock = [0.0]
    token = SecretFile(tmp_path / "token", clock=lambda: clock[0])

    async def twice() -> None:
        async with sink_to(server.url, token=token) as sink:
            await sink.send(EVENT)
            (tmp_path / "token").write_text("another")
            clock[0] = 60
            await sink.send(EVENT)

    asyncio.run(twice())
    assert [got.headers["authorization"] for got in server.got] == ["Bearer one", "Bearer another"]


def test_the_state_says_how_the_last_event_went(server: HttpServer) -> None:
    async def states() -> list[str]:
        async with sink_to(server.url) as sink:
            before = sink.state()
            await sink.send(EVENT)
            after = sink.state()
            await sink.close()
            return [before, after]

    before, after = asyncio.run(states())
    assert before == "no event sent yet"
    assert after.startswith("answered 202")
