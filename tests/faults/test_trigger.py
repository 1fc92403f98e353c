"""The trigger's own call to a server: the champion's pointer in the object store, for a model whose roll-out it awaits.

Its ledger, budget and Workflows are a file on one machine; `tests/policy/test_kills.py` kills it at each call to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aegis import events, pointer
from aegis.pointer import Pointer
from aegis.signature import Signer
from aegis.storage import Store, open_store
from sign_model import keys
from tests.faults.proxy import Fault, FaultProxy, Kind
from tests.faults.stage import BUCKET, simplify
from tests.support import until
from tests.trigger.host import Host, trigger_host
from tests.trigger.world import World, drift

MODELS = f"s3://{BUCKET}/awaited"
WHERE = "/aegis/awaited/champions/default/<model>/pointer.json"


@dataclass
class Waiting:
    """A trigger process, and the object store that it reads the pointers from."""

    host: Host
    proxy: FaultProxy
    ledger: Path
    store: Store
    signer: Signer

    def prepare(self, model: str) -> None:
        """A model that was promoted seven hours ago, whose cooldown is over."""
        world = World(self.ledger, now=datetime.now(UTC) - timedelta(hours=7))
        answer = world.trigger().event(drift(model, seen=world.now))
        assert answer.workflow is not None
        world.end(answer.workflow, pointer="1")
        world.trigger().reconcile()
        self.roll_out(model, 1)

    def roll_out(self, model: str, serial: int) -> None:
        """Move the pointer, as promotion does and `aegis adopt`."""
        where = pointer.path_of("default", model)
        new = Pointer(model, "default", serial, "ab" * 32, "cd" * 32, MODELS, "r", "1", "u", "2026-01-01T00:00:00Z")
        entry = self.store.head(where)
        self.store.swap(where, pointer.seal(new, self.signer), entry.version if entry else None)

    def alert(self, model: str) -> str:
        """The alert for the version that was replaced, sent until it is answered 2xx; what was decided."""
        headers, body = events.encode(events.to_cloudevent(drift(model, seen=datetime.now(UTC))))

        def once() -> bool:
            assert self.host.process is not None
            if self.host.process.poll() is not None:
                self.host.start().ready()
            try:
                return self.host.request("POST", "/", body, headers)[0] in (200, 204)
            except OSError:
                self.host.process.wait(10)
                return False

        until(once, what="an answer to the alert")
        return World(self.ledger).record(model).status.history[-1].reason

    def workflows(self, model: str) -> int:
        return sum(name.startswith(f"aegis-{model}-") for name in World(self.ledger).workflow_names())


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory, storage: Mapping[str, str]) -> Iterator[Waiting]:
    home = tmp_path_factory.mktemp("waiting")
    signer = keys.ensure(home / "keys" / "signing.pem", home / "trusted")
    port = int(storage["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with FaultProxy("trigger to object store", port, simplify=simplify) as proxy:
        host = trigger_host(home / "ledger.db", home / "log", models_uri=MODELS, trusted_keys=str(home / "trusted"))
        host.env = {**host.env, **storage, "AWS_ENDPOINT_URL": proxy.url}
        with host:
            store = open_store(MODELS, env=storage)
            yield Waiting(host.ready(), proxy, home / "ledger.db", store, signer)


def test_while_it_waits_for_a_roll_out_it_reads_the_pointer(waiting: Waiting) -> None:
    waiting.prepare("x-plain")
    assert waiting.alert("x-plain") == "WaitingForRollout"
    assert [(call.method, call.path) for call in waiting.proxy.calls] == [("HEAD", WHERE), ("GET", WHERE)]


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("kind", Kind)
def test_a_fault_while_it_reads_the_pointer_is_no_roll_out_and_the_next_one_is_seen(
    waiting: Waiting, kind: Kind, method: str
) -> None:
    model = f"x-{kind.name.lower().replace('_', '-')}-{method.lower()}"
    waiting.prepare(model)
    fault = waiting.proxy.add(Fault(kind, method=method, path=WHERE, delay_s=0.3))
    assert waiting.host.process is not None
    before = waiting.host.process.pid
    assert waiting.alert(model) == "WaitingForRollout"
    waiting.proxy.clear()
    assert fault.fired == 1
    assert (waiting.host.pid != before) == (kind in (Kind.KILL_BEFORE, Kind.KILL_AFTER)), "killed, and started again"
    assert waiting.workflows(model) == 1

    waiting.roll_out(model, 2)
    assert waiting.alert(model) == "Drift"
    assert waiting.workflows(model) == 2
