"""Every call of every step to a server goes wrong in every way; the step is tried again as the WorkflowTemplate does.

MLflow, the object store and the trigger are real servers behind fault proxies, the steps are processes that can be
killed. Each fault has a workflow of its own, of which there must be one run, one package, one version and one move of
the pointer in the end; `Scenario.check` says so for each step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue

import pytest

from aegis_cli.runner import load
from aegis_cli.stack import template_path
from aegis_cli.workflow_template import items
from tests.faults.boundaries import HITS
from tests.faults.nursery import Nursery
from tests.faults.proxy import Call, Fault, Kind
from tests.faults.stage import KILLED, SCENARIOS, Scenario, Stage

EVERYWHERE = (Kind.KILL_BEFORE, Kind.KILL_AFTER, Kind.ERROR_AFTER)
ONCE = (Kind.REFUSE, Kind.DELAY)
PATIENCE_S = 1
"""MLflow's client waits this long here; the object store's takes a minute, so there a delay is only a delay."""


class Stages:
    """Two of them, so that two scenarios run at a time: each waits most of the time for one process or another."""

    def __init__(self, first: Stage, second: Stage) -> None:
        self.first = first
        self._free: SimpleQueue[Stage] = SimpleQueue()
        self._free.put(first)
        self._free.put(second)

    def plain(self, step: str) -> list[Call]:
        return self.first.plain(SCENARIOS[step])

    def each(self, numbers: Iterable[int], act: Callable[[Stage, int], None]) -> None:
        """Do it for each number, on a stage of its own."""

        def one(number: int) -> None:
            stage = self._free.get()
            try:
                act(stage, number)
            finally:
                stage.clear()
                self._free.put(stage)

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(one, number) for number in numbers]:
                done.result()


@pytest.fixture(scope="module")
def stages(
    tmp_path_factory: pytest.TempPathFactory,
    nurseries: tuple[Nursery, Nursery],
    tracking: int,
    storage: Mapping[str, str],
) -> Iterator[Stages]:
    with ExitStack() as within:
        first = Stage(tmp_path_factory.mktemp("stage"), tracking, storage, nurseries[0], within)
        yield Stages(first, first.beside(nurseries[1], within))


@contextmanager
def told(text: str) -> Iterator[None]:
    """A failure says in which scenario it happened."""
    try:
        yield
    except Exception as error:
        error.add_note(text)
        raise


def place(calls: list[Call], number: int) -> str:
    call = calls[number]
    return f"call {number + 1} of {len(calls)}: {call.server}: {call.method} {call.path}"


def first_of_each_method(calls: list[Call]) -> list[int]:
    """The first call of each method to each server."""
    found: dict[tuple[str, str], int] = {}
    for number, call in enumerate(calls):
        found.setdefault((call.server, call.method), number)
    return list(found.values())


def struck(stage: Stage, kind: type[Scenario], number: int, fault: Fault, **env: str) -> tuple[Scenario, int]:
    """A new scenario, and how it ended with this fault at this call."""
    calls = stage.plain(kind)
    call = calls[number]
    scenario = kind(stage)
    scenario.env |= env
    scenario.prepare()
    stage.clear()
    fault.method, fault.path, fault.nth = call.method, re.escape(call.path), calls[: number + 1].count(call)
    stage.proxy(call.server).add(fault)
    code = scenario.run()
    assert fault.fired == 1, f"the fault happened {fault.fired} times: {scenario.said}"
    return scenario, code


@pytest.mark.parametrize("step", SCENARIOS)
def test_without_a_fault(stages: Stages, step: str) -> None:
    assert stages.plain(step)


@pytest.mark.parametrize("step", SCENARIOS)
@pytest.mark.parametrize("fault", EVERYWHERE, ids=["killed before", "killed after", "500 after the work"])
def test_a_fault_at_any_call_loses_nothing_and_doubles_nothing(stages: Stages, step: str, fault: Kind) -> None:
    calls = stages.plain(step)

    def strike(stage: Stage, number: int) -> None:
        with told(f"{step}: {fault} at {place(calls, number)}"):
            scenario, code = struck(stage, SCENARIOS[step], number, Fault(fault))
            if fault is not Kind.ERROR_AFTER:
                assert code == KILLED, scenario.said
            scenario.settle(code)
            scenario.check()

    stages.each(range(len(calls)), strike)


@pytest.mark.parametrize("step", SCENARIOS)
def test_a_connection_that_is_reset_costs_nothing(stages: Stages, step: str) -> None:
    calls = stages.plain(step)

    def refuse(stage: Stage, number: int) -> None:
        with told(f"{step}: refused at {place(calls, number)}"):
            scenario, code = struck(stage, SCENARIOS[step], number, Fault(Kind.REFUSE))
            assert code == 0, "the client tries again by itself"
            scenario.check()

    stages.each(first_of_each_method(calls), refuse)


@pytest.mark.parametrize("step", SCENARIOS)
def test_an_answer_that_comes_late_costs_nothing(stages: Stages, step: str) -> None:
    """MLflow's client has given up by then and asks again, for work that is done already."""
    calls = stages.plain(step)

    def delay(stage: Stage, number: int) -> None:
        with told(f"{step}: delayed at {place(calls, number)}"):
            fault = Fault(Kind.DELAY, delay_s=1.5 * PATIENCE_S if calls[number].server.endswith("MLflow") else 0.3)
            impatient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(PATIENCE_S)}
            scenario, code = struck(stage, SCENARIOS[step], number, fault, **impatient)
            assert code == 0, scenario.said
            scenario.check()

    stages.each(first_of_each_method(calls), delay)


@pytest.mark.parametrize("step", SCENARIOS)
def test_a_server_that_is_down_is_told_by_exit_code_75_and_the_next_try_ends_well(stages: Stages, step: str) -> None:
    servers = sorted({call.server for call in stages.plain(step)})

    def take_down(stage: Stage, number: int) -> None:
        with told(f"{step}: down: {servers[number]}"):
            scenario = SCENARIOS[step](stage)
            scenario.prepare()
            proxy = stage.proxy(servers[number])
            proxy.down()
            try:
                code = scenario.run()
            finally:
                proxy.up()
            assert code == (75 if scenario.retried else 0), scenario.said
            scenario.settle(code)
            scenario.check()

    stages.each(range(len(servers)), take_down)


def test_every_step_of_the_template_is_here() -> None:
    pods = [template for template in load(template_path()).templates.values() if "container" in template]
    commands = [c["command"] for pod in pods for c in (*items(pod, "initContainers"), pod["container"])]
    assert sorted(command[-1] for command in commands) == sorted(kind.module for kind in SCENARIOS.values())


def test_every_call_of_every_step_was_hit_by_every_fault(stages: Stages) -> None:
    """The last test of this module, as it looks at what the others did."""
    for step in SCENARIOS:
        calls = stages.plain(step)
        wanted = {(call, fault) for call in calls for fault in EVERYWHERE}
        wanted |= {(calls[number], fault) for number in first_of_each_method(calls) for fault in ONCE}
        names = {(call.server, f"{call.method} {call.path}", str(fault)) for call, fault in wanted}
        assert names - set(HITS) == set(), f"{step}: nothing went wrong there (was this test run alone?)"
