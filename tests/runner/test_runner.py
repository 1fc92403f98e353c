"""What the local runner does with a Workflow: as Argo would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from aegis.errors import Permanent
from aegis_cli.process import LOG_LIMIT, TAIL
from aegis_cli.runner import approve, reject, stop
from aegis_cli.workflow_template import SHAPES
from tests.support import until

from .conftest import NOW, Json, World, container, output, outputs, phase, pod, row, template
from .test_template import SHIPPED

OUT = [{"name": "OUT", "value": "/out"}]
SAY = "import os; print(os.environ['SAID'], end='')"
CHILD = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
ONE_STEP = [[{"name": "a", "template": "a"}]]
RETRY = {
    "limit": 2,
    "expression": "asInt(lastRetry.exitCode) in [75, 137, 143]"
    ' && !(lastRetry.message contains "the specified deadline")'
    ' || lastRetry.message contains "(exit code 75)" || lastRetry.status == "Error"',
    "backoff": {"duration": "0s"},
}


def writes(name: str, value: str, then: str = "") -> str:
    return f"import os, sys, pathlib; pathlib.Path(os.environ['OUT'], {name!r}).write_text({value!r}); {then}"


def counts(file: Path, then: str) -> str:
    """Code that appends to a file outside the run, then does something with `n`, the number of its runs."""
    return f"f = open({str(file)!r}, 'a+'); f.write('.'); f.flush(); f.seek(0); n = len(f.read()); {then}"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Steps, parameters, artifacts


def test_steps_run_in_order_and_hand_on_parameters_and_artifacts(world: World) -> None:
    make = pod(
        "make",
        writes(
            "word", "blue\n", "d = pathlib.Path(os.environ['OUT'], 'model'); d.mkdir(); (d/'m').write_text('bytes')"
        ),
        env=OUT,
        outputs={"parameters": [output("word")], "artifacts": [{"name": "model", "path": "/out/model"}]},
    )
    use = pod(
        "use",
        "import os; print(os.environ['WORD'], open(os.environ['DIR'] + '/m').read())",
        env=[{"name": "WORD", "value": "{{inputs.parameters.word}}!"}, {"name": "DIR", "value": "/in/model"}],
        inputs={"parameters": [{"name": "word"}], "artifacts": [{"name": "model", "path": "/in/model"}]},
    )
    arguments = {
        "parameters": [{"name": "word", "value": "{{steps.make.outputs.parameters.word}}"}],
        "artifacts": [{"name": "model", "from": "{{steps.make.outputs.artifacts.model}}"}],
    }
    use_step: Json = {"name": "use", "template": "use", "arguments": arguments}
    steps = [[{"name": "make", "template": "make"}], [use_step]]
    done = world.run(template(make, use, steps=steps))
    assert phase(done) == "Succeeded"
    assert world.log("use") == "blue! bytes\n"
    assert done["status"]["finishedAt"] == "2026-03-01T12:00:00Z"


def test_the_steps_of_one_group_run_at_the_same_time(world: World) -> None:
    (world.home / "met").mkdir()
    code = f"import os, time; d = {str(world.home / 'met')!r}; open(d + '/' + os.environ['ME'], 'w')"
    code += "\nwhile len(os.listdir(d)) < 2: time.sleep(.01)"
    one, two = (pod(name, code, env=[{"name": "ME", "value": name}], activeDeadlineSeconds=20) for name in ("a", "b"))
    group = [{"name": "a", "template": "a"}, {"name": "b", "template": "b"}]
    assert phase(world.run(template(one, two, steps=[group]))) == "Succeeded"


def test_init_containers_run_first_and_share_the_volumes(world: World) -> None:
    one = pod(
        "a", "import os; print(open(os.environ['OUT'] + '/data').read())", env=OUT, init=writes("data", "fetched")
    )
    one["initContainers"][0]["env"] = OUT
    assert phase(world.run(template(one))) == "Succeeded"
    assert world.log("a") == "fetched\n"


def test_a_failed_init_container_says_why_and_main_never_runs(world: World) -> None:
    fetch = "print('the table has no labels', flush=True);" + writes("outcome", "BadData", "sys.exit(65)")
    one = pod("a", "", init=fetch, outputs={"parameters": [output("outcome", global_name="outcome")]})
    one["initContainers"][0]["env"] = OUT
    done = world.run(template(one))
    node = done["status"]["nodes"]["a"]
    assert node["message"] == "fetch: Error (exit code 65): the table has no labels"
    assert node["exitCode"] == 65
    assert outputs(done["status"]) == {}  # Argo's executor isn't there yet to collect anything
    assert not (world.home / "runs/w/a/main.log").exists()


def test_outputs_of_a_failed_step_reach_the_workflow(world: World) -> None:
    declared = [output("outcome", global_name="outcome"), output("said", default="nothing", global_name="said")]
    code = writes("outcome", "BadData:NoLabels", "sys.exit(65)")
    one = pod("a", code, env=OUT, outputs={"parameters": declared})
    done = world.run(template(one))
    assert phase(done) == "Failed"
    assert outputs(done["status"]) == {"outcome": "BadData:NoLabels", "said": "nothing"}
    assert done["status"]["nodes"]["a"]["exitCode"] == 65
    assert done["status"]["nodes"]["a"]["outputs"]["exitCode"] == "65"


def test_a_later_step_replaces_a_global_output(world: World) -> None:
    declared = {"parameters": [output("outcome", global_name="outcome")]}
    one = pod("a", writes("outcome", "Trained"), env=OUT, outputs=declared)
    two = pod("b", "raise SystemExit(70)", outputs=declared)
    assert outputs(world.run(template(one, two))["status"]) == {"outcome": ""}


def test_an_output_that_is_missing_is_an_error_of_the_step(world: World) -> None:
    one = pod("a", "", outputs={"parameters": [output("absent", default=None)]})
    done = world.run(template(one))
    assert phase(done, "a") == "Error"
    assert "absent" in done["status"]["nodes"]["a"]["message"]


def test_an_endless_output_is_an_error_of_the_step(world: World) -> None:
    one = pod("a", writes("long", "x" * 70_000), env=OUT, outputs={"parameters": [output("long")]})
    assert phase(world.run(template(one)), "a") == "Error"


def test_an_artifact_keeps_its_links_as_links(world: World) -> None:
    code = (
        "import os, pathlib; d = pathlib.Path(os.environ['OUT'], 'm'); d.mkdir(); (d / 'l').symlink_to('/etc/passwd')"
    )
    one = pod("a", code, env=OUT, outputs={"artifacts": [{"name": "m", "path": "/out/m"}]})
    assert phase(world.run(template(one))) == "Succeeded"
    assert (world.home / "runs/w/.artifacts/a/m/l").is_symlink()


# when


@pytest.mark.parametrize(("verdict", "then"), [("accept", "Succeeded"), ("reject", "Skipped"), ("", "Skipped")])
def test_a_step_runs_only_when_its_condition_holds(world: World, verdict: str, then: str) -> None:
    gate = pod("gate", writes("verdict", verdict), env=OUT, outputs={"parameters": [output("verdict")]})
    when = "'{{steps.gate.outputs.parameters.verdict}}' == 'accept'"
    steps = [[{"name": "gate", "template": "gate"}], [{"name": "sign", "template": "sign", "when": when}]]
    done = world.run(template(gate, pod("sign", ""), steps=steps))
    assert phase(done) == "Succeeded"
    assert phase(done, "sign") == then


def test_a_skipped_step_has_the_defaults_of_its_outputs(world: World) -> None:
    gate = pod("gate", "", outputs={"parameters": [output("verdict", default="none")]})
    never = "'a' == 'b'"
    when = "'{{steps.gate.outputs.parameters.verdict}}' == 'none'"
    steps = [
        [{"name": "gate", "template": "gate", "when": never}],
        [{"name": "after", "template": "after", "when": when}],
    ]
    assert phase(world.run(template(gate, pod("after", ""), steps=steps)), "after") == "Succeeded"


# Injection: each row of what Argo's templates do with values


@pytest.mark.parametrize(
    "value",
    [
        "{{workflow.serviceAccountName}}",
        "{{workflow.name}}",
        "{{=1+41}}",
        "{{=toJson(workflow.parameters)}}",
        "{{ x",
        "}}",
        "a\x07b",
        "a\x7fb",
        "a\x0bb",
        "a\U000e0001b",
        "'\"`\\",
        "one\ntwo\r\n",
        "$(id)",
        "$(SAID)",
        "$HOME; rm -rf / & `id`",
        "--help",
        "/out/x",
        "",
    ],
)
def test_a_value_arrives_as_the_text_that_it_is(world: World, value: str) -> None:
    # Argo itself would substitute some of these: the allow-lists in front of it refuse them. Here none is looked at.
    said = [{"name": "SAID", "value": "{{workflow.parameters.x}}"}]
    code = "import os, sys; print(ascii([os.environ['SAID'], sys.argv[1]]), end='')"
    one = pod("a", code, env=said, args=["{{workflow.parameters.x}}"])
    done = world.run(template(one, arguments={"parameters": [{"name": "x"}]}), row("w", {"x": value}))
    assert phase(done) == "Succeeded"
    assert world.log("a") == ascii([value, value])


def test_a_value_goes_through_two_steps_unchanged(world: World) -> None:
    inner = pod(
        "a", SAY, env=[{"name": "SAID", "value": "{{inputs.parameters.p}}"}], inputs={"parameters": [{"name": "p"}]}
    )
    arguments = {"parameters": [{"name": "p", "value": "{{workflow.parameters.x}}"}]}
    steps = [[{"name": "a", "template": "a", "arguments": arguments}]]
    document = template(inner, steps=steps, arguments={"parameters": [{"name": "x"}]})
    world.run(document, row("w", {"x": "{{workflow.name}}{{inputs.parameters.p}}"}))
    assert world.log("a") == "{{workflow.name}}{{inputs.parameters.p}}"


@pytest.mark.parametrize("value", ["a\x00b", "\ud800"])
def test_a_value_that_no_process_can_take_fails_the_workflow_and_not_the_runner(world: World, value: str) -> None:
    one = pod("a", SAY, env=[{"name": "SAID", "value": "{{workflow.parameters.x}}"}], retryStrategy=RETRY)
    done = world.run(template(one, arguments={"parameters": [{"name": "x"}]}), row("w", {"x": value}))
    assert phase(done) == "Failed"
    assert "can't start" in done["status"]["message"]
    assert "a(1)" not in done["status"]["nodes"]


# Failures, retries, deadlines


@pytest.mark.parametrize(("code", "runs"), [(75, 3), (65, 1), (70, 1), (64, 1), (76, 1), (77, 1), (137, 3), (143, 3)])
def test_only_transient_exit_codes_are_tried_again(world: World, code: int, runs: int) -> None:
    tries = world.home / "tries"
    done = world.run(template(pod("a", counts(tries, f"raise SystemExit({code})"), retryStrategy=RETRY)))
    assert tries.read_text() == "." * runs
    assert phase(done) == "Failed"
    why = "No more retries left" if runs > 1 else "retryStrategy.expression evaluated to false"
    assert done["status"]["nodes"]["a"]["message"].startswith(why)
    assert done["status"]["nodes"]["a"]["exitCode"] == code


def test_a_fetch_that_failed_for_now_is_tried_again_too(world: World) -> None:
    tries = world.home / "tries"
    done = world.run(template(pod("a", "", init=counts(tries, "raise SystemExit(75 * (n < 2))"), retryStrategy=RETRY)))
    assert phase(done) == "Succeeded"
    assert [phase(done, node) for node in ("a(0)", "a(1)", "a")] == ["Failed", "Succeeded", "Succeeded"]


def test_the_outputs_of_a_retried_step_are_those_of_its_success(world: World) -> None:
    tries = world.home / "tries"
    write = "import os; open(os.environ['OUT'] + '/n', 'w').write(str(n));"
    code = counts(tries, f"{write} raise SystemExit(75 * (n < 3))")
    one = pod("a", code, env=OUT, outputs={"parameters": [output("n", global_name="n")]}, retryStrategy=RETRY)
    done = world.run(template(one))
    assert outputs(done["status"]) == {"n": "3"}
    assert outputs(done["status"]["nodes"]["a"]) == {"n": "3"}


def test_each_attempt_has_fresh_volumes(world: World) -> None:
    code = "import os; out = os.environ['OUT']; print(os.listdir(out)); open(out + '/x', 'w'); raise SystemExit(75)"
    world.run(template(pod("a", code, env=OUT, retryStrategy=RETRY)))
    assert [world.log(f"a({n})") for n in range(3)] == ["[]\n"] * 3


def test_a_step_past_its_deadline_is_killed_with_all_that_it_started(world: World) -> None:
    code = f"{CHILD} print(p.pid, flush=True); time.sleep(60)"
    began = time.monotonic()
    done = world.run(template(pod("a", code, activeDeadlineSeconds=1, retryStrategy=RETRY)))
    assert time.monotonic() - began < 10
    assert phase(done) == "Failed"
    assert "longer than the specified deadline" in done["status"]["nodes"]["a(0)"]["message"]
    assert "a(1)" not in done["status"]["nodes"]
    until(lambda: not alive(int(world.log("a(0)"))))


def test_a_step_that_ignores_a_polite_end_is_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_cli.process.GRACE_S", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    done = world.run(template(pod("a", code, activeDeadlineSeconds=1)))
    assert done["status"]["nodes"]["a"]["exitCode"] == 137


def test_a_workflow_past_its_deadline_fails(world: World) -> None:
    workflow = row("w")
    workflow["status"] = {"phase": "Running", "startedAt": "2026-03-01T10:00:00Z"}
    document = template(pod("a", ""), pod("bye", ""), steps=ONE_STEP, onExit="bye", activeDeadlineSeconds=60)
    done = world.run(document, workflow)
    assert phase(done) == "Failed"
    assert phase(done, "onExit") == "Succeeded"


def test_nothing_runs_after_a_failed_step_but_on_exit(world: World) -> None:
    bye = pod("bye", SAY, env=[{"name": "SAID", "value": "{{workflow.status}}"}])
    steps = [[{"name": "a", "template": "a"}], [{"name": "b", "template": "b"}]]
    done = world.run(template(pod("a", "raise SystemExit(65)"), pod("b", ""), bye, steps=steps, onExit="bye"))
    assert phase(done) == "Failed"
    assert "b" not in done["status"]["nodes"]
    assert world.log("onExit") == "Failed"


def test_on_exit_runs_after_success_and_its_failure_may_be_tolerated(world: World) -> None:
    notify = {"name": "notify", "template": "notify", "continueOn": {"failed": True, "error": True}}
    after = {"name": "bye", "steps": [[notify]]}
    broken = pod("notify", "raise SystemExit(1)")
    done = world.run(template(pod("a", ""), broken, after, onExit="bye", steps=ONE_STEP))
    assert phase(done) == "Succeeded"
    assert phase(done, "onExit.notify") == "Failed"


def test_a_log_is_kept_from_both_ends_and_bounded(world: World) -> None:
    code = "print('first'); [print('x' * 999) for _ in range(5000)]; print('last', flush=True); raise SystemExit(1)"
    done = world.run(template(pod("a", code)))
    log = world.log("a")
    assert len(log) < LOG_LIMIT + TAIL + 100
    assert log.startswith("first\n")
    assert log.endswith("last\n")
    assert "bytes left out" in log
    message = done["status"]["nodes"]["a"]["message"]
    assert len(message) < 2200
    assert message.endswith("last")


def test_a_program_that_is_not_there_fails_with_its_name(world: World) -> None:
    one = pod("a", "")
    one["container"]["command"] = ["no-such-program"]
    assert "no-such-program" in world.run(template(one))["status"]["message"]


# Environment and secrets


def test_a_step_s_environment_is_what_the_template_names_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of this process")
    world.config = {"settings": {"SINK": "http://sink", "OTHER": "no"}}
    env = [
        {"name": "SINK", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "SINK"}}},
        {"name": "ABSENT", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "X", "optional": True}}},
    ]
    world.run(template(pod("a", "import os; print(sorted(os.environ)); print(os.environ['SINK'])", env=env)))
    names, sink = world.log("a").splitlines()
    assert set(yaml.safe_load(names)) - {"LC_CTYPE"} == {"HOME", "LANG", "PATH", "SINK", "TMPDIR"}
    assert sink == "http://sink"


def test_a_secret_reaches_only_the_containers_that_name_it(world: World) -> None:
    world.secrets = {"storage": {"TOKEN": "hunter2"}}
    show = "import os; print(os.environ.get('TOKEN'))"
    one = pod("a", show, init=show)
    one["initContainers"][0]["envFrom"] = [{"secretRef": {"name": "storage"}}]
    world.run(template(one))
    assert world.log("a", "fetch") == "hunter2\n"
    assert world.log("a") == "None\n"


SHOW = """\
import os, pathlib
print("\\n".join(f"{name}={value}" for name, value in os.environ.items()))
if "AEGIS_OUT" in os.environ:
    out = pathlib.Path(os.environ["AEGIS_OUT"])
    out.mkdir(exist_ok=True)
    (out / "status").write_text("trained")
    (out / "verdict").write_text("accept")
    (out / "model").mkdir(exist_ok=True)
"""


BESIDE = """\
import os, pathlib, signal, sys
out = pathlib.Path(os.environ["OUT"])
def over(*_):
    (out / "told").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, over)
(out / "ready").touch()
signal.pause()
"""
WAITS = """\
import os, pathlib, time
while not (pathlib.Path(os.environ["OUT"]) / "ready").exists():
    time.sleep(0.01)
"""


def test_a_sidecar_runs_beside_main_and_is_told_that_it_is_over(world: World) -> None:
    one = pod("one", WAITS, env=OUT)
    one["sidecars"] = [{**container(BESIDE), "name": "beside", "env": OUT}]
    done = world.run(template(one), row("w"))
    assert phase(done) == "Succeeded", done["status"]
    assert (world.home / "runs/w/one/volumes/out/told").exists()


def test_a_sidecar_that_fails_fails_the_pod_as_argo_has_it(world: World) -> None:
    one = pod("one", WAITS, env=OUT)
    fails = "import os, pathlib; pathlib.Path(os.environ['OUT'], 'ready').touch(); raise SystemExit(3)"
    one["sidecars"] = [{**container(fails), "name": "beside", "env": OUT}]
    done = world.run(template(one), row("w"))
    assert phase(done) == "Failed"
    assert done["status"]["message"].endswith("beside: Error (exit code 3)")


def test_a_sidecar_ends_with_a_main_container_that_failed(world: World) -> None:
    one = pod("one", "raise SystemExit(4)")
    one["sidecars"] = [{**container("import time; time.sleep(600)"), "name": "beside"}]
    done = world.run(template(one), row("w"))
    assert (phase(done), "exit code 4" in done["status"]["message"]) == ("Failed", True)


def test_the_shipped_trainer_gets_no_bucket_credential(world: World) -> None:
    document: Json = yaml.safe_load(SHIPPED.read_text())
    world.secrets = {
        "aegis-storage": {"AWS_SECRET_ACCESS_KEY": "hunter2"},
        "aegis-mlflow": {"MLFLOW_TRACKING_PASSWORD": "p"},
    }
    world.config = {"aegis-steps": {"AEGIS_SIGNING_KEY": "file:///k", "MLFLOW_TRACKING_URI": "http://mlflow"}}
    for one in document["spec"]["templates"]:
        for part in (
            *one.get("initContainers", []),
            *one.get("sidecars", []),
            *([one["container"]] if "container" in one else []),
        ):
            part["command"] = ["python", "-c", SHOW]
    values = {p["name"]: "" for p in document["spec"]["arguments"]["parameters"]} | {"approval": "false"}
    done = world.run(document, row("w", values, of="aegis-retrain"))
    assert phase(done) == "Succeeded", done["status"]
    holders = {
        f"{node.parent.name}/{node.stem}"
        for node in (world.home / "runs/w").glob("*/*.log")
        if "hunter2" in node.read_text()
    }
    buckets = {"train(0)/fetch", "train(0)/checkpoint", "gate(0)/main", "sign(0)/main", "promote(0)/main"}
    assert holders == buckets
    trainer = world.log("train(0)")
    assert "AEGIS_SIGNING_KEY" not in trainer
    assert "MLFLOW_TRACKING_PASSWORD=p" in trainer
    assert f"AEGIS_OUT={world.home}/runs/w/train(0)/volumes/out" in trainer


def test_a_secret_that_must_be_there_is_named_when_it_is_not(world: World) -> None:
    done = world.run(template(pod("a", "", envFrom=[{"secretRef": {"name": "storage"}}])))
    assert "storage" in done["status"]["message"]


def test_a_secret_as_a_volume_is_readable_by_nobody_else(world: World) -> None:
    world.secrets = {"keys": {"signing.pem": "-----"}}
    volumes = [
        {"name": "keys", "secret": {"secretName": "keys"}},
        {"name": "none", "configMap": {"name": "x", "optional": True}},
    ]
    code = "import os; p = os.environ['KEY']; print(open(p).read(), oct(os.stat(p).st_mode & 0o777))"
    one = pod("a", code, volumes=volumes, env=[{"name": "KEY", "value": "/keys/signing.pem"}])
    one["container"]["volumeMounts"].append({"name": "keys", "mountPath": "/keys"})
    world.run(template(one))
    assert world.log("a") == "----- 0o600\n"


# Rows


@pytest.mark.parametrize(
    ("workflow", "named"),
    [
        (row("w", {}), ["spec.arguments.x: missing"]),
        (row("w", {"x": "1", "y": "2"}), ["spec.arguments.y: unknown"]),
        (row("w", {"x": 1, "z": ""}), ["spec.arguments.x: must be a text", "spec.arguments.z: unknown"]),
        (row("w", {"x": "1"}, of="other"), ["spec.workflowTemplateRef.name: must be test"]),
        (row("w", {"x": "1"}, onExit="bye", entrypoint="a"), ["spec.onExit: not allowed", "spec.entrypoint: must be"]),
    ],
)
def test_a_workflow_that_does_not_fit_its_template_is_refused_with_every_fault(
    world: World, workflow: Json, named: list[str]
) -> None:
    done = world.run(template(pod("a", ""), arguments={"parameters": [{"name": "x"}]}), workflow)
    assert phase(done) == "Error"
    assert all(name in done["status"]["message"] for name in named)
    assert "nodes" not in done["status"]


def test_one_workflow_of_a_model_runs_at_a_time(world: World) -> None:
    code = f"""
import os, pathlib, time
me, marks = os.environ["ME"], pathlib.Path({str(world.home)!r})
(marks / f"started-{{me}}").touch()
print(time.time())
partner = {{"w1": "other", "other": "w1"}}.get(me)
latest = time.monotonic() + 30
while partner and not (marks / f"started-{{partner}}").exists():
    assert time.monotonic() < latest, "alone"
    time.sleep(0.01)
print(time.time())
"""
    slow = pod("a", code, env=[{"name": "ME", "value": "{{workflow.name}}"}])
    document = template(slow, arguments={"parameters": [{"name": "model"}, {"name": "environment"}]})
    for name, model in (("w1", "m"), ("w2", "m"), ("other", "n")):
        world.submit(row(name, {"model": model, "environment": "e"}))
    seen: list[str] = []
    world.runner(document, parallel=3, on_end=lambda doc: seen.append(doc["metadata"]["name"])).run_pending()
    times = {name: [float(t) for t in world.log("a", workflow=name).split()] for name in ("w1", "w2", "other")}
    assert times["w1"][1] <= times["w2"][0]
    assert sorted(seen) == ["other", "w1", "w2"]


def test_workflows_that_ended_are_forgotten_when_their_time_is_over(world: World) -> None:
    document = template(pod("a", ""))
    for name, lives in (("short", 60), ("long", 7200)):
        world.run(document, row(name, ttlStrategy={"secondsAfterCompletion": lives}))
    world.run(document, row("for-ever"))
    world.now += timedelta(minutes=2)
    world.run(document, row("new", ttlStrategy={"secondsAfterCompletion": 60}))
    assert world.objects.names("Workflow") == ["for-ever", "long", "new"]


def test_urgent_workflows_go_first(world: World) -> None:
    for name, priority in (("w1", 0), ("w2", 10), ("w3", 5)):
        world.submit(row(name, priority=priority))
    seen: list[str] = []
    world.runner(
        template(pod("a", "")), parallel=1, on_end=lambda doc: seen.append(doc["metadata"]["name"])
    ).run_pending()
    assert seen == ["w2", "w3", "w1"]


def test_old_run_directories_are_removed(world: World) -> None:
    runner = world.runner(template(pod("a", "")), parallel=1)
    for n in range(23):
        world.submit(row(f"w{n:02}"))
    runner.run_pending()
    kept = sorted(path.name for path in (world.home / "runs").iterdir() if path.is_dir())
    assert kept == [f"w{n:02}" for n in range(3, 23)]


def test_two_runners_never_share_a_state_directory(world: World) -> None:
    halt = threading.Event()
    document = template(pod("a", ""))
    thread = threading.Thread(target=world.runner(document).serve, args=(halt,))
    thread.start()
    try:
        world.submit(row("w"))
        until(lambda: "status" in world.read() and phase(world.read()) == "Succeeded")
        with pytest.raises(Permanent, match="another runner"):
            world.runner(document).run_pending()
    finally:
        halt.set()
        thread.join(10)


# People


def approval(**spec: object) -> Json:
    steps = [[{"name": "a", "template": "a"}], [{"name": "ask", "template": "ask"}], [{"name": "b", "template": "b"}]]
    parameters = [{"name": "model", "value": "m"}, {"name": "environment", "value": "e"}]
    spec["arguments"] = {"parameters": parameters}
    return template(pod("a", ""), {"name": "ask", "suspend": {}}, pod("b", ""), steps=steps, **spec)


def test_an_approved_workflow_goes_on_where_it_waited(world: World) -> None:
    assert phase(world.run(approval())) == "Running"
    assert phase(world.read(), "ask") == "Running"
    assert world.runner(approval()).run_pending() == 0
    approve(world.objects, "w", by="a person", now=NOW)
    world.runner(approval()).run_pending()
    assert phase(world.read()) == "Succeeded"
    assert world.read()["status"]["nodes"]["ask"]["message"] == "approved by a person"


def test_a_rejected_workflow_fails(world: World) -> None:
    world.run(approval())
    reject(world.objects, "w", by="a person", why="too risky", now=NOW)
    world.runner(approval()).run_pending()
    assert phase(world.read()) == "Failed"
    assert "rejected by a person: too risky" in world.read()["status"]["message"]
    assert "b" not in world.read()["status"]["nodes"]


def test_an_answer_that_nobody_waits_for_is_refused(world: World) -> None:
    world.run(template(pod("a", "")))
    with pytest.raises(Permanent, match="doesn't wait"):
        approve(world.objects, "w", by="a person", now=NOW)


def test_a_workflow_that_waits_for_a_person_leaves_room_for_other_models_only(world: World) -> None:
    world.submit(row("w1", {"model": "m"}))
    world.submit(row("w2", {"model": "m"}))
    world.submit(row("other", {"model": "n"}))
    document = approval()
    document["spec"]["arguments"]["parameters"] = [{"name": "model"}, {"name": "environment", "value": "e"}]
    for stored in ("w1", "w2", "other"):
        doc = world.read(stored)
        doc["spec"]["arguments"]["parameters"].append({"name": "environment", "value": "e"})
        world.objects.replace("Workflow", stored, doc, 1, pending=True)
    world.runner(document, parallel=1).run_pending()
    assert phase(world.read("w1"), "ask") == "Running"
    assert phase(world.read("other"), "ask") == "Running"
    assert phase(world.read("w2")) == "Pending"
    assert "w1" in world.read("w2")["status"]["message"]


def test_an_approval_that_never_comes_ends_with_the_workflow_s_deadline(world: World) -> None:
    world.run(approval(activeDeadlineSeconds=3600))
    world.now = NOW + timedelta(hours=2)
    world.runner(approval(activeDeadlineSeconds=3600)).run_pending()
    assert phase(world.read()) == "Failed"
    assert "deadline" in world.read()["status"]["message"]


@pytest.mark.parametrize(("strategy", "after"), [("Stop", True), ("Terminate", False)])
def test_a_cancelled_workflow_ends_as_failed_and_says_so(world: World, strategy: str, after: bool) -> None:
    slow = pod("a", "import time; time.sleep(60)")
    document = template(slow, pod("bye", ""), steps=ONE_STEP, onExit="bye")
    world.submit(row("w"))
    thread = threading.Thread(target=world.runner(document).run_pending)
    thread.start()
    until((world.home / "runs/w/a/main.log").exists)
    if strategy == "Stop":
        stop(world.objects, "w")
    else:
        stored = world.objects.get("Workflow", "w")
        assert stored is not None
        stored.doc["spec"]["shutdown"] = strategy
        world.objects.replace("Workflow", "w", stored.doc, stored.version, pending=True)
    thread.join(20)
    done = world.read()
    assert (phase(done), done["status"]["message"]) == ("Failed", f"Stopped with strategy '{strategy}'")
    assert ("onExit" in done["status"]["nodes"]) is after


def test_a_deleted_workflow_s_step_is_ended(world: World) -> None:
    world.submit(row("w"))
    slow = pod("a", "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    thread = threading.Thread(target=world.runner(template(slow)).run_pending)
    thread.start()
    until(lambda: (world.home / "runs/w/a/main.log").exists() and world.log("a"))
    pid = int(world.log("a"))
    world.objects._run("DELETE FROM objects")
    thread.join(20)
    assert not thread.is_alive()
    assert not alive(pid)


# Restarts

SERVE = """\
import json, sys, threading
from datetime import UTC, datetime
from pathlib import Path
from aegis_cli.runner import Runner
from aegis_cli.workflow_template import parse
from retrain_trigger.sqlite import Objects
home = Path(sys.argv[1])
template = parse(json.loads((home / "template.json").read_text()))
Runner(Objects(home / "objects.db"), template, home, {}, {}).serve(threading.Event())
"""


def test_a_killed_runner_leaves_nothing_running_and_the_next_goes_on_where_it_was(world: World) -> None:
    once, again = world.home / "once", world.home / "again"
    slow = "import os; n == 1 and print(os.getpid(), p.pid, flush=True); time.sleep(60 * (n == 1))"
    first = pod("a", counts(once, "pass"), retryStrategy=RETRY)
    document = template(first, pod("b", CHILD + counts(again, slow), retryStrategy=RETRY))
    (world.home / "template.json").write_text(json.dumps(document))
    world.submit(row("w"))
    runner = subprocess.Popen([sys.executable, "-c", SERVE, str(world.home)])
    try:
        until(lambda: (world.home / "runs/w/b(0)/main.log").exists() and world.log("b(0)"))
    finally:
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
    step, grandchild = (int(pid) for pid in world.log("b(0)").split())
    until(lambda: not alive(step))  # by the kernel, with nobody left to do it
    assert phase(world.read()) == "Running"
    world.runner(document).run_pending()
    until(lambda: not alive(grandchild))
    assert phase(world.read()) == "Succeeded"
    assert (once.read_text(), again.read_text()) == (".", "..")
    assert "b(1)" not in world.read()["status"]["nodes"]


def test_a_runner_that_is_told_to_stop_ends_its_steps_and_the_next_runs_them_again(world: World) -> None:
    runs = world.home / "runs-of-a"
    document = template(pod("a", "import time;" + counts(runs, "time.sleep(60 * (n == 1))")))
    world.submit(row("w"))
    halt = threading.Event()
    thread = threading.Thread(target=world.runner(document).serve, args=(halt,))
    thread.start()
    until(runs.exists)
    until(runs.read_text)
    halt.set()
    thread.join(20)
    assert not thread.is_alive()
    assert phase(world.read()) == "Running"
    world.runner(document).run_pending()
    assert phase(world.read()) == "Succeeded"
    assert runs.read_text() == ".."


def test_a_container_s_program_is_never_a_shell_s(world: World) -> None:
    one = pod("a", "")
    one["container"] = {**container(""), "command": ["echo", "$HOME", ";", "id"]}
    world.run(template(one))
    assert world.log("a") == "$HOME ; id\n"


def test_the_runner_knows_hardly_a_field_that_the_shipped_template_does_not_use() -> None:
    used: set[tuple[str, str]] = set()

    def walk(value: object, kind: str) -> None:
        if isinstance(value, list):
            for item in value:
                walk(item, kind[1:-1])
        elif isinstance(value, dict) and kind in SHAPES:
            for name, item in value.items():
                used.add((kind, name))
                walk(item, SHAPES[kind].executed.get(name, ""))

    walk(yaml.safe_load(SHIPPED.read_text()), "workflowTemplate")
    known = {(kind, name) for kind, shape in SHAPES.items() for name in (*shape.executed, *shape.cluster)}
    spare = {("container", "args"), ("initContainer", "args"), ("container", "name"), ("parameter", "value")}
    assert known - used == spare
