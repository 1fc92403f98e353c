"""The `aegis` command: run everything on one machine, send alerts, and ask why a model was or was not retrained."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aegis.errors import OK, USAGE, VERIFICATION_FAILED, NotFound, Permanent, Temporary
from aegis.events import NAME, SEVERITIES, parse_time, rfc3339
from aegis.names import SHA256
from retrain_trigger.kubernetes import NotInstalled, Refused
from retrain_trigger.model import ROWS, Record, Retrain, Row, object_name

from . import alerts, config, story
from .cluster import Cluster, Place
from .stack import NotRunning, Stack, State, call, default_state, interrupted
from .story import shown

NO = 3
NOTICED_WITHIN_S = 5.0
"""How long an alert or a request is looked for in the ledger before it is said how the model stands."""
EXIT_CODES = """exit codes:
  0   done; with --wait: a better model was promoted; doctor: nothing is wrong
  3   an honest no: held, refused, rejected by the gate, or the retrain failed; doctor: something is wrong
  64  bad usage or configuration     65  bad data
  69  nothing runs where it should   70  the demo did not do what it claims; trainer check: a breach
  75  try again                      76  verification failed
  77  signing denied, or the cluster's API server refuses you"""
PORT_FORWARD = """\
a cluster's receiver needs --url and --token-file. To reach it from here:
  kubectl -n {0} port-forward "$(kubectl -n {0} get pods -o name -l app.kubernetes.io/component=receiver | head -n 1)" \
12000:8080
and in another shell: aegis send {1} --cluster --url http://127.0.0.1:12000/alertmanager --token-file FILE"""


class Parser(argparse.ArgumentParser):
    """Wrong usage ends with the code that every part of Aegis has for it."""

    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        run: Callable[[argparse.Namespace], int] = parsed.run
        return run(parsed)
    except (Permanent, Temporary) as exc:
        faults = getattr(exc, "faults", {})
        print(f"aegis: {shown(getattr(exc, 'message', exc))}", file=sys.stderr)
        for name, what in faults.items():
            print(f"  {shown(name)}: {shown(what)}", file=sys.stderr)
        if isinstance(exc, NotInstalled):
            print("  `aegis doctor --cluster` says what is missing, and how to install it", file=sys.stderr)
        return exc.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return OK


def _parser() -> Parser:
    parser = Parser(
        prog="aegis",
        description="A model drift alert in, a signed better model out.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, *, state: bool = True) -> Parser:
        made: Parser = commands.add_parser(
            name, help=text, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        made.set_defaults(run=run)
        if state:
            made.add_argument("--state", type=Path, default=default_state(), help="folder of ledger, models and keys")
        return made

    demo = add("demo", _demo, "show the whole path on this machine, in about a minute", state=False)
    demo.add_argument("--seed", type=int, default=0, help="another seed, other data (default 0)")
    demo.add_argument("--state", type=Path, default=default_state().with_name("aegis-demo"), help="emptied first")

    up = add("up", _up, "keep receiver, trigger, runner and MLflow running until Ctrl-C")
    up.add_argument("--config", type=Path, metavar="FILE", help="see docs/settings.md; without it: defaults")

    send = add("send", _send, "send a test alert for a model, as Alertmanager would")
    _model(send)
    send.add_argument("--version", default="", help="the version that drifts")
    send.add_argument("--severity", choices=SEVERITIES, default="warning")
    send.add_argument("--dataset", default="", metavar="URI", help="where the new data is")
    send.add_argument("--feature", default="", help="the feature that drifts")
    send.add_argument("--summary", default="sent by aegis send")
    send.add_argument("--resolved", action="store_true", help="say that the alert ended")
    send.add_argument("--dry-run", action="store_true", help="print what would be posted, and post nothing")
    send.add_argument("--url", type=_url, help="another receiver (default: the one of `aegis up`)")
    send.add_argument("--token-file", type=Path, metavar="FILE", help="a bearer token for the receiver")
    _waiting(send)
    _cluster(send)

    listing = add("models", _models, "list the models: does it drift, does it retrain, and if not, why")
    listing.add_argument("--json", action="store_true", help="for scripts")
    _cluster(listing)

    why = add("why", _why, "tell one model's story: decisions with reasons, retrains with outcomes, links")
    _model(why)
    why.add_argument("--json", action="store_true", help="for scripts")
    _cluster(why)

    retrain = add("retrain", _retrain, "ask for a retrain; passes every hold but suspend, the budget and a running one")
    _model(retrain)
    retrain.add_argument("--why", required=True, help="the reason, kept in the model's story")
    _waiting(retrain)
    _cluster(retrain)

    approve = add("approve", _approve, "release an accepted model that waits for a person, or refuse it")
    _model(approve)
    approve.add_argument("--reject", metavar="WHY", help="refuse it instead")
    _cluster(approve)

    doctor = add("doctor", _doctor, "name each thing that is missing or wrong, with the command that mends it")
    doctor.add_argument("--mlflow", type=_url, help="where MLflow answers from here (default: by its name)")
    doctor.add_argument("--json", action="store_true", help="for scripts")
    _cluster(doctor)

    verify = add("verify", _verify, "check a package: signatures, provenance and every byte")
    verify.add_argument("directory", type=Path, metavar="DIR")
    verify.add_argument("--keys", type=Path, metavar="DIR", help="trusted public keys, *.pub (default: of --state)")
    verify.add_argument("--model", help="the model that it must be")
    verify.add_argument("--environment", help="the environment that it must be for")
    verify.add_argument("--pointer", type=Path, metavar="FILE", help="the signed pointer that must name it")
    verify.add_argument("--min-serial", type=int, help="refuse an older pointer")
    verify.add_argument(
        "--dataset-prefix", action="append", default=[], metavar="URI", help="all its data must be below one of these"
    )
    verify.add_argument(
        "--kind", action="append", default=[], metavar="KIND", help="allow only such files: .json, MLmodel (repeatable)"
    )
    verify.add_argument("--allow-pickle", action="store_true", help="accept files that run code when loaded")
    verify.add_argument("--extract", type=Path, metavar="DIR", help="put the verified model there")
    verify.add_argument("--json", action="store_true", help="for scripts")

    adopt = add("adopt", _adopt, "sign a model that already serves and make it the champion")
    _model(adopt)
    adopt.add_argument("directory", type=Path, metavar="DIR", help="an MLflow model directory")
    adopt.add_argument("--dataset", default="", metavar="URI", help="what it was trained on, so that retrains keep it")
    adopt.add_argument("--allow-pickle", action="store_true", help="accept files that run code when loaded")

    rollback = add("rollback", _rollback, "make an older model the champion again, under a new pointer")
    _model(rollback)
    rollback.add_argument(
        "--to", default="previous", metavar="WHICH", help="sha256 of its archive, registered version, or previous"
    )

    resign = add("resign", _resign, "sign the champion's bytes anew with the current key")
    _model(resign)
    resign.add_argument(
        "--trust", action="append", default=[], type=Path, metavar="OLD.pub", help="believe this public key for once"
    )
    resign.add_argument("--package", type=_sha256, metavar="SHA256", help="refuse any other champion than this archive")

    trainers = add("trainer", lambda _: USAGE, "try a trainer of your own", state=False)
    tried = trainers.add_subparsers(metavar="check", required=True).add_parser(
        "check",
        help="run it on small data and name every breach of the contract",
        description="Run a trainer of your own on small data as a retrain would, and name every breach of the contract "
        "(docs/trainers.md) with what to do. It ends with 0 if there is none, and with 70 if there is one.",
    )
    tried.add_argument("--module", default="", metavar="M", help="package.module:function, found from here too")
    tried.add_argument("--task", choices=("image", "table", "regression"), default="", help="(default: image)")
    tried.add_argument("--data", type=Path, metavar="PATH", help="a data file or folder of your own, no toy data")
    tried.add_argument(
        "--param", action="append", default=[], type=_param, metavar="NAME=VALUE", help="for params.json (repeatable)"
    )
    tried.add_argument("--seed", type=int, default=0, help="(default 0)")
    tried.add_argument("--timeout", type=int, default=300, metavar="S", help="of each run (default 300 s)")
    tried.add_argument("--keep", type=Path, metavar="DIR", help="an empty folder that keeps IN and OUT of each run")
    tried.add_argument("command", nargs="*", metavar="-- COMMAND", help="a program with its arguments, no --module")
    tried.set_defaults(run=_trainer_check)

    name = add("name", _name, "print the name of a model's ManagedModel object", state=False)
    _model(name)

    checks = add("config", lambda _: USAGE, "check a configuration file", state=False)
    check = checks.add_subparsers(metavar="check", required=True).add_parser("check", help="name every fault at once")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--state", type=Path, default=default_state(), help="the folder that it is for")
    check.set_defaults(run=_config_check)
    return parser


def _model(parser: argparse.ArgumentParser) -> None:
    def named(text: str) -> str:
        if NAME.fullmatch(text) is None:
            raise argparse.ArgumentTypeError(f"a name matches {NAME.pattern}")
        return text

    parser.add_argument("model", type=named, metavar="MODEL")
    parser.add_argument("--environment", type=named, default="default", help="(default: default)")


def _waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="follow the retrain to its outcome")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="of --wait (default 900 s)")
    parser.add_argument("--json", action="store_true", help="for scripts")


def _cluster(parser: argparse.ArgumentParser) -> None:
    def label(text: str) -> str:
        if re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text) is None:
            raise argparse.ArgumentTypeError("a namespace is lower-case letters, digits and dashes")
        return text

    parser.add_argument("--cluster", action="store_true", help="the one that KUBECONFIG, or the pod's account, names")
    parser.add_argument("--namespace", type=label, metavar="NS", help="of models (default: aegis)")
    parser.add_argument(
        "--workflow-namespace", type=label, metavar="NS", help="of Workflows (default: aegis-workflows)"
    )


def _param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _sha256(text: str) -> str:
    if SHA256.fullmatch(text) is None:
        raise argparse.ArgumentTypeError("must be a sha256 in hex")
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not text.isprintable():
        raise argparse.ArgumentTypeError("must be http://HOST[:PORT]/PATH or https://...")
    return text


def _place(parsed: argparse.Namespace) -> Cluster | State:
    if parsed.cluster:
        return Cluster(parsed.namespace or "aegis", parsed.workflow_namespace or "aegis-workflows")
    if parsed.namespace or parsed.workflow_namespace:
        raise Permanent("a namespace is one of a cluster: add --cluster", exit_code=USAGE)
    return State(parsed.state.absolute())


# --- commands ----------------------------------------------------------------------------------------------------


def _demo(parsed: argparse.Namespace) -> int:
    from .demo import demo

    return demo(parsed.state, parsed.seed)


def _up(parsed: argparse.Namespace) -> int:
    state = State(parsed.state.absolute())
    settings = config.check({}, state.root) if parsed.config is None else config.load(parsed.config, state.root)
    told: dict[str, datetime] = {}
    with interrupted() as stop, contextlib.ExitStack() as parts:
        print(f"Starting (state in {state.root}) ...", flush=True)
        stack = parts.enter_context(Stack(state, settings, os.environ, stop))
        if not stop.is_set():  # else Ctrl-C came while the parts started
            _say_where(stack)
            _tell(state, told, quiet=True)
        while not stop.wait(1):
            stack.check()
            _tell(state, told)
        print("Stopping ...", flush=True)
    return OK


def _say_where(stack: Stack) -> None:
    urls = stack.urls
    print(f"  alerts    POST {urls['receiver']}/alertmanager")
    print(f"  trigger   {urls['trigger']}  (drift events; /reconcile, /status, /metrics)")
    print(f"  MLflow    {urls['mlflow']}")
    print("  data may come from " + ", ".join(stack.config.prefixes(stack.state.root)))
    print("Ready. Ctrl-C ends it. In another shell: aegis send NAME --wait, aegis models, aegis why NAME", flush=True)


def _tell(state: State, told: dict[str, datetime], *, quiet: bool = False) -> None:
    """Print what happened since the last look."""
    for record in state.records().records():
        rows = record.status.history
        for row in rows:
            if not quiet and row.last > told.get(record.name, row.first - timedelta(1)):
                what = f"{ROWS.get(row.kind, row.kind)}: {row.reason}  {row.message}"
                print(f"{row.last:%H:%M:%S}  {record.environment}/{record.model}  {shown(what)}", flush=True)
        if rows:
            told[record.name] = max(row.last for row in rows)


def _send(parsed: argparse.Namespace) -> int:
    now = parse_time(rfc3339(datetime.now(UTC)))  # as the ledger will have it
    labels = {"alertname": "ModelDrift", "model_name": parsed.model, "severity": parsed.severity}
    labels |= {"environment": parsed.environment} if parsed.environment != "default" else {}
    labels |= {"model_version": parsed.version} if parsed.version else {}
    labels |= {"feature": parsed.feature} if parsed.feature else {}
    annotations = {"summary": parsed.summary} | ({"dataset_uri": parsed.dataset} if parsed.dataset else {})
    body = alerts.payload(labels, annotations, now, ends_at=now if parsed.resolved else None)
    if parsed.dry_run:
        print(json.dumps(body, indent=2))
        return OK
    if parsed.cluster and not (parsed.url and parsed.token_file):
        raise Permanent(PORT_FORWARD.format(parsed.namespace or "aegis", parsed.model), exit_code=USAGE)
    place = _place(parsed)
    url = parsed.url or f"{State(parsed.state.absolute()).urls()['receiver']}/alertmanager"
    parts = urlsplit(url)
    headers = {"content-type": "application/json"}
    if parsed.token_file:
        headers["authorization"] = f"Bearer {_token(parsed.token_file)}"
    try:
        status, _, answer = call(url, "POST", parts.path or "/", json.dumps(body).encode(), headers)
    except (OSError, http.client.HTTPException) as exc:
        hint = "is the port-forward up?" if parsed.cluster else "is `aegis up` running?"
        raise NotRunning(f"{shown(url)} does not answer ({shown(exc)}): {hint}") from exc
    if status >= 300:
        said = shown(answer.decode(errors="replace").strip())
        raise (Temporary if status >= 500 else Permanent)(f"the receiver answered {status}: {said}")
    for record in _looks(place, parsed, NOTICED_WITHIN_S) if parsed.cluster else ():  # a Broker may take its time
        if record is not None and any(now in (e.starts_at, e.ends_at) for e in record.status.evidence):
            break
    record = place.records().read(object_name(parsed.environment, parsed.model))
    if record is None:
        raise Permanent("the alert was accepted, but no such model is managed: see the receiver's configuration")
    return _report(place, record, parsed)


def _token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        token = ""
    if not token or not token.isprintable():
        raise Permanent(f"{path} cannot be read, or is not a token: one line of printable ASCII", exit_code=USAGE)
    return token


def _looks(place: Place, parsed: argparse.Namespace, within_s: float) -> Iterator[Record | None]:
    """The record, again and again until the time is over; a store that is away for a moment ends nothing."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            yield place.records().read(object_name(parsed.environment, parsed.model))
        except Refused:
            raise
        except Temporary:
            pass
        time.sleep(min(place.poll_s, max(0.0, deadline - time.monotonic())))


def _report(place: Place, record: Record, parsed: argparse.Namespace, before: str | None = None) -> int:
    """Say how the model's story stands; with --wait, once the retrain in flight has ended. Only a promotion by that
    retrain is then a yes. It may be over already if its claim is not the one from `before`."""
    retrain, row = record.status.retrain, record.status.history[-1] if record.status.history else None
    news = before is not None and retrain is not None and retrain.claim != before
    if not parsed.wait or retrain is None or not (retrain.in_flight or news):
        _print_row(place, record, row, parsed)
        return NO if parsed.wait else OK
    record, row = _ended(place, parsed, retrain)
    _print_row(place, record, row, parsed)
    return OK if row is not None and row.reason == "Promoted" else NO


def _ended(place: Place, parsed: argparse.Namespace, followed: Retrain) -> tuple[Record, Row | None]:
    """The record as soon as this retrain is over, and the row that tells its end; what happened to the model since,
    and was told in later rows, is another matter. Raises Temporary when it takes too long."""
    told = ""
    for record in _looks(place, parsed, parsed.timeout):
        if record is None:
            raise _unknown(parsed)
        retrain = record.status.retrain
        if retrain is not None and retrain.claim == followed.claim:
            followed = retrain  # the name of its Workflow may have been taken, and be another one now
        if retrain is not followed or not retrain.in_flight:
            ends = (row for row in reversed(record.status.history) if row.kind == "Finished")
            return record, next((row for row in ends if row.workflow == followed.workflow), None)
        now = f"{retrain.workflow}: {retrain.state or retrain.phase}"
        if now != told and not parsed.json:
            print(now, flush=True)
        told = now
    raise Temporary(f"no outcome within {parsed.timeout:g} s; see `aegis why {parsed.model}`")


def _print_row(place: Place, record: Record, row: Row | None, parsed: argparse.Namespace) -> None:
    if parsed.json:
        print(json.dumps(story.as_json(record, place)))
    elif row is not None:
        what = f"{ROWS.get(row.kind, row.kind)}: {row.reason}" + (f" ({row.message})" if row.message else "")
        print(f"{record.environment}/{record.model}: {shown(what)}")


def _models(parsed: argparse.Namespace) -> int:
    place = _place(parsed)
    records = place.records().records()
    if parsed.json:
        print(json.dumps([story.as_json(record, place) for record in records]))
    else:
        print(story.models(records))
    return OK


def _record(place: Place, parsed: argparse.Namespace) -> Record:
    record = place.records().read(object_name(parsed.environment, parsed.model))
    if record is None:
        raise _unknown(parsed)
    return record


def _unknown(parsed: argparse.Namespace) -> NotFound:
    return NotFound(f"no model {parsed.model} is known in environment {parsed.environment}; see `aegis models`")


def _why(parsed: argparse.Namespace) -> int:
    place = _place(parsed)
    record = _record(place, parsed)
    print(json.dumps(story.as_json(record, place)) if parsed.json else story.why(record, place))
    return OK


def _retrain(parsed: argparse.Namespace) -> int:
    place = _place(parsed)
    record = _record(place, parsed)
    before = record.status.retrain.claim if record.status.retrain else ""
    token = place.request(record.name, parsed.why)
    woken = isinstance(place, State) and place.wake()  # on a cluster a timer does it, every minute
    if not woken and not parsed.wait:
        later = f"The trigger looks every minute; `aegis why {parsed.model} --cluster` tells."
        later = later if parsed.cluster else "Nothing runs now; `aegis up` will take it up."
        print(json.dumps(story.as_json(_record(place, parsed), place)) if parsed.json else f"Noted. {later}")
        return OK
    if not (woken or parsed.cluster):
        raise NotRunning("noted, but nothing runs that --wait could follow: `aegis up` will take it up")
    # On one machine a reconcile that ran already looks again by itself.
    for found in _looks(place, parsed, parsed.timeout if parsed.cluster else NOTICED_WITHIN_S):
        if found is not None and (token in found.status.tokens or found.policy.suspend):
            return _report(place, found, parsed, before)
    if parsed.cluster:
        told = f"noted, but the trigger has not taken it up within {parsed.timeout:g} s"
        raise Temporary(f"{told}: is the budget spent, or does nothing wake it? `aegis doctor --cluster`")
    return _report(place, _record(place, parsed), parsed)


def _approve(parsed: argparse.Namespace) -> int:
    place = _place(parsed)
    retrain = _record(place, parsed).status.retrain
    if retrain is None or not retrain.in_flight:
        raise Permanent(f"no retrain of {parsed.model} is in flight")
    place.answer(retrain.workflow, parsed.reject)
    return OK


def _doctor(parsed: argparse.Namespace) -> int:
    from . import doctor, examine

    place = _place(parsed)
    found = list(
        examine.cluster(place, parsed.mlflow) if isinstance(place, Cluster) else examine.machine(place, parsed.mlflow)
    )
    wrong = sum(finding.state == doctor.WRONG for finding in found)
    if parsed.json:
        print(json.dumps({"wrong": wrong, "findings": [finding.as_json() for finding in found]}))
    else:
        print(doctor.told(found))
    return NO if wrong else OK


def _verify(parsed: argparse.Namespace) -> int:
    from aegis import signature
    from sign_model.verify import Policy, policy_faults, verify_directory

    if wrong := policy_faults(("--dataset-prefix", parsed.dataset_prefix), ("--kind", parsed.kind)):
        raise Permanent("bad policy", wrong, exit_code=USAGE)
    keys = signature.load_keys(parsed.keys or State(parsed.state.absolute()).trusted)
    faults = verify_directory(
        parsed.directory,
        keys,
        model=parsed.model,
        environment=parsed.environment,
        pointer_file=parsed.pointer,
        min_serial=parsed.min_serial,
        target=parsed.extract,
        policy=Policy(tuple(parsed.dataset_prefix), frozenset(parsed.kind), parsed.allow_pickle),
    )
    if parsed.json:
        print(json.dumps({"verified": not faults, "faults": faults}))
    elif faults:
        print(f"{shown(parsed.directory)} is NOT what it claims to be:")
        print("\n".join(f"  {shown(fault)}" for fault in faults))
    else:
        print(f"{shown(parsed.directory)}: signatures, provenance and every byte verified")
    return VERIFICATION_FAILED if faults else OK


def _adopt(parsed: argparse.Namespace) -> int:
    from .adoption import adopted

    state = State(parsed.state.absolute())
    done = adopted(
        state,
        parsed.directory,
        parsed.environment,
        parsed.model,
        mlflow=state.urls()["mlflow"],
        dataset_uri=parsed.dataset,
        allow_pickle=parsed.allow_pickle,
    )
    print(f"{parsed.environment}/{parsed.model}: {done.explanation} (serial {done.serial}, version {done.version})")
    return OK


def _rollback(parsed: argparse.Namespace) -> int:
    from .adoption import rolled_back

    state = State(parsed.state.absolute())
    done = rolled_back(state, parsed.environment, parsed.model, parsed.to, mlflow=state.urls()["mlflow"])
    print(shown(done.explanation))
    return OK if done.version else NO  # no version: somebody else moved the pointer meanwhile


def _resign(parsed: argparse.Namespace) -> int:
    from .adoption import resigned

    state = State(parsed.state.absolute())
    done = resigned(
        state,
        parsed.environment,
        parsed.model,
        mlflow=state.urls()["mlflow"],
        believed=parsed.trust,
        only=parsed.package or "",
    )
    print(shown(done.explanation))
    return OK


def _trainer_check(parsed: argparse.Namespace) -> int:
    from .trial import check

    # A pod starts in a folder of its own, so a file beside us is meant by its whole path.
    words = [str(Path(word).absolute()) if Path(word).is_file() else word for word in parsed.command]
    settings = {"module": parsed.module, "command": words, "params": dict(parsed.param)}
    settings |= {"timeoutSeconds": parsed.timeout} | ({"task": parsed.task} if parsed.task else {})
    with tempfile.TemporaryDirectory(prefix="aegis-trial-", ignore_cleanup_errors=True) as scratch:
        root = (parsed.keep or Path(scratch)).absolute()
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise Permanent(f"{root} is not empty", exit_code=USAGE)
        report = check(settings, parsed.seed, parsed.data, root, os.environ)
    print(report.text())
    return report.code


def _name(parsed: argparse.Namespace) -> int:
    print(object_name(parsed.environment, parsed.model))
    return OK


def _config_check(parsed: argparse.Namespace) -> int:
    config.load(parsed.file, parsed.state.absolute())
    print(f"{shown(parsed.file)} is good")
    return OK


if __name__ == "__main__":
    sys.exit(main())
