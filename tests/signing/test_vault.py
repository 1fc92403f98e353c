"""Keys in a real OpenBao server, whose Kubernetes auth method asks a real API server: who signs, and who does not."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hvac
import pytest

from aegis import manifest, signature
from aegis.errors import OK, SIGNING_DENIED, TRANSIENT, USAGE, Permanent, Temporary
from sign_model import keys, vault
from sign_model.verify import verify_directory
from tests.cluster.control_plane import ControlPlane
from tests.faults.proxy import Fault, FaultProxy, Kind, Message, told
from tests.signing.openbao import POLICY, OpenBao, expired, openbao, service_token
from tests.signing.world import World, process_env
from tests.support import free_port

DIGEST = hashlib.sha256(b"a model").digest()
JSON = "application/json"
SECRET = re.compile(r"\beyJ[\w-]{10,}\.[\w-]{10,}\.|\b(?:s|hvs|sbr)\.[A-Za-z0-9]{16,}|PRIVATE KEY")
READ_ONLY = 'path "transit/keys/{key}" {{ capabilities = ["read"] }}'


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> ControlPlane:
    for namespace in ("signing", "elsewhere"):
        control_plane.kubectl("create", "namespace", namespace)
        for account in ("aegis-signer", "aegis-workflow-sa"):
            control_plane.kubectl("-n", namespace, "create", "serviceaccount", account)
    return control_plane


@pytest.fixture(scope="module")
def bao(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with openbao(tmp_path_factory.mktemp("openbao")) as server:
        server.trust_cluster(plane)
        server.key("digits")
        server.role("signer", "digits", "signing")
        yield server


@pytest.fixture(scope="module")
def projected(plane: ControlPlane) -> str:
    """What the kubelet would mount for the signer."""
    return service_token(plane, "signing", "aegis-signer")


@dataclass
class Case:
    """One try to sign: settings, and what the signer's pod finds in its files."""

    bao: OpenBao
    plane: ControlPlane
    world: World
    jwt: str
    key: str = "openbao://digits"
    more: dict[str, str] = field(default_factory=dict)
    pauses: list[float] = field(default_factory=list)

    def env(self) -> dict[str, str]:
        (self.world.root / "jwt").write_text(self.jwt)
        login = {"AEGIS_VAULT_ROLE": "signer"} if "AEGIS_VAULT_TOKEN_FILE" not in self.more else {}
        where = {"VAULT_ADDR": self.bao.address, "AEGIS_VAULT_JWT_FILE": str(self.world.root / "jwt")}
        return {**self.world.env(), **where, **login, "AEGIS_SIGNING_KEY": self.key, **self.more}

    def token_file(self, token: str) -> None:
        path = self.world.root / "vault-token"
        path.touch(mode=0o600)
        path.write_text(token + "\n")
        self.more["AEGIS_VAULT_TOKEN_FILE"] = str(path)

    def trust(self, pem: bytes, name: str = "vault") -> None:
        (self.world.trusted_dir / f"{name}.pub").write_bytes(pem)

    def run(self) -> subprocess.CompletedProcess[str]:
        """The step sign as a process."""
        model = self.world.root / "model"
        if not model.exists():
            self.world.make_model()
        judged = {"AEGIS_MODEL_DIR": str(model), "AEGIS_DIGEST": manifest.root_digest(manifest.walk(model))}
        env = process_env({**self.env(), **judged})
        command = [sys.executable, "-m", "sign_model.sign"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        files = [path.read_text(errors="replace") for path in self.world.root.rglob("*.json")]
        files += [path.read_text() for path in (self.world.root / "out").iterdir()]
        for text in (done.stdout, done.stderr, *files):
            assert not SECRET.search(text), text
            assert not any(secret in text for secret in (self.jwt.strip(), self.bao.token) if secret)
        return done

    def load(self) -> signature.Signer:
        """In this process; `pauses` are what it would have waited."""
        self.pauses.clear()
        return keys.load(self.key, self.env(), pause=self.pauses.append)


@pytest.fixture
def case(bao: OpenBao, plane: ControlPlane, world: World, projected: str) -> Case:
    one = Case(bao, plane, world, projected)
    one.trust(bao.public("digits", 1))
    return one


# --- who may sign ---


@pytest.mark.parametrize("scheme", ["openbao", "hashivault"])
def test_the_signer_s_account_signs_and_the_package_verifies(case: Case, scheme: str) -> None:
    before = case.bao.tokens()
    case.key = f"{scheme}://digits"
    done = case.run()
    assert (done.returncode, done.stderr) == (OK, "")
    folder = case.world.folder(case.world.output("package"))
    assert verify_directory(folder, case.world.trusted, model="digits", environment="default") == []
    assert json.loads((folder / "result.json").read_text())["key"] == f"{scheme}://digits?version=1"
    assert (folder / "signer.pub").read_bytes() == case.bao.public("digits", 1)
    assert case.bao.tokens() == before  # every token was revoked


def test_a_key_in_a_namespace_of_the_server_signs(case: Case) -> None:
    case.bao.root.write("sys/namespaces/team")
    inside = hvac.Client(case.bao.address, token=case.bao.token, namespace="team")
    inside.sys.enable_secrets_engine("transit")
    inside.secrets.transit.create_key("theirs", key_type="ecdsa-p256")
    pem = inside.secrets.transit.read_key("theirs")["data"]["keys"]["1"]["public_key"].encode()
    case.trust(pem, "theirs")
    case.token_file(case.bao.token)
    case.key = "openbao://theirs"
    assert case.run().returncode == SIGNING_DENIED, "not in the server's root"
    case.more["VAULT_NAMESPACE"] = "team"
    done = case.run()
    assert (done.returncode, done.stderr) == (OK, "")
    folder = case.world.folder(case.world.output("package"))
    assert (folder / "signer.pub").read_bytes() == pem


def test_a_token_file_signs_and_its_token_stays(case: Case) -> None:
    made = case.bao.root.auth.token.create(policies=["digits"], ttl="60s")["auth"]
    case.token_file(made["client_token"])
    assert case.run().returncode == OK
    assert case.bao.root.auth.token.lookup_accessor(made["accessor"])["data"]["policies"] == ["default", "digits"]


def test_with_tls_the_server_s_authority_is_asked_for(case: Case, tmp_path: Path) -> None:
    with openbao(tmp_path / "tls", tls=True) as server:
        case.bao = server
        case.trust(server.key("digits"))
        case.token_file(server.root.auth.token.create(policies=["digits"])["auth"]["client_token"])
        case.more["BAO_CACERT"] = server.ca
        case.more["VAULT_CACERT"] = "/nowhere"  # for openbao:// the other one wins
        assert case.run().returncode == OK
        case.more["BAO_CACERT"] = str(case.plane.authority)
        with pytest.raises(Permanent, match="certificate is not trusted") as caught:
            case.load()
        assert caught.value.exit_code == SIGNING_DENIED
        case.more["BAO_CACERT"] = str(case.world.root / "jwt")
        with pytest.raises(Permanent, match="BAO_CACERT: ") as caught:
            case.load()
        assert caught.value.exit_code == USAGE


# --- who may not: nothing published, no secret told, each by the step's process ---

Prepare = Callable[[Case], object]


def _bound(case: Case) -> None:
    case.plane.kubectl("-n", "signing", "create", "secret", "generic", "short-lived")
    case.jwt = service_token(case.plane, "signing", "aegis-signer", bound="short-lived")
    case.plane.kubectl("-n", "signing", "delete", "secret", "short-lived")


def _revoked(case: Case) -> None:
    token = case.bao.root.auth.token.create(policies=["digits"])["auth"]["client_token"]
    case.token_file(token)
    case.bao.root.auth.token.revoke(token)


def _another(name: str, kind: str = "ecdsa-p256", policy: str = POLICY, uri: str = "openbao://{}") -> Prepare:
    def prepare(case: Case) -> None:
        case.trust(case.bao.key(name, kind, policy)) if kind == "ecdsa-p256" else case.bao.key(name, kind, policy)
        case.bao.role(f"{name}-role", name, "signing")
        case.more["AEGIS_VAULT_ROLE"] = f"{name}-role"
        case.key = uri.format(name)

    return prepare


def _retired(case: Case) -> None:
    _another("retired", uri="openbao://{}?version=1")(case)
    case.bao.root.secrets.transit.rotate_key("retired")
    case.bao.configure("retired", min_encryption_version=2)


def _trimmed(case: Case) -> None:
    _another("trimmed", uri="openbao://{}?version=1")(case)
    case.bao.root.secrets.transit.rotate_key("trimmed")
    case.bao.configure("trimmed", min_decryption_version=2)


def _deleted(case: Case) -> None:
    _another("deleted")(case)
    case.bao.configure("deleted", deletion_allowed=True)
    case.bao.root.secrets.transit.delete_key("deleted")


def _missing(case: Case) -> None:
    case.bao.root.sys.create_or_update_policy("reader", 'path "*" { capabilities = ["read"] }')
    case.bao.role("reader", "reader", "signing")
    case.more["AEGIS_VAULT_ROLE"] = "reader"
    case.key = "openbao://missing"


def _key(uri: str) -> Prepare:
    return lambda case: setattr(case, "key", uri)


def _jwt(namespace: str, account: str, audience: str = "vault") -> Prepare:
    return lambda case: setattr(case, "jwt", service_token(case.plane, namespace, account, audience))


def _set(**values: str) -> Prepare:
    return lambda case: case.more.update(values)


LOGIN = "auth/kubernetes/login as role signer: "
REFUSALS: dict[str, tuple[Prepare, int, str]] = {
    "another account": (_jwt("signing", "aegis-workflow-sa"), SIGNING_DENIED, LOGIN + "service account name not"),
    "another namespace": (_jwt("elsewhere", "aegis-signer"), SIGNING_DENIED, LOGIN + "namespace not authorized"),
    "another audience": (_jwt("signing", "aegis-signer", "other"), SIGNING_DENIED, LOGIN),
    "no audience": (_jwt("signing", "aegis-signer", ""), SIGNING_DENIED, LOGIN),
    "an expired token": (lambda c: setattr(c, "jwt", expired(c.plane, c.jwt)), SIGNING_DENIED, LOGIN),
    "a token whose pod is gone": (_bound, SIGNING_DENIED, LOGIN),
    "a token of nobody": (lambda c: setattr(c, "jwt", "eyJhbGciOiJub25lIn0.e30."), SIGNING_DENIED, "as role signer"),
    "an empty token": (lambda c: setattr(c, "jwt", "\n"), SIGNING_DENIED, "AEGIS_VAULT_JWT_FILE: holds no token"),
    "no token": (_set(AEGIS_VAULT_JWT_FILE="/nowhere"), SIGNING_DENIED, "AEGIS_VAULT_JWT_FILE: No such file"),
    "a revoked token": (_revoked, SIGNING_DENIED, "transit/keys/digits: permission denied"),
    "an unknown role": (_set(AEGIS_VAULT_ROLE="nobody"), SIGNING_DENIED, 'invalid role name "nobody"'),
    "a policy without sign": (_another("unsigned", policy=READ_ONLY), SIGNING_DENIED, "transit/sign/unsigned: "),
    "a policy for another key": (_key("openbao://other"), SIGNING_DENIED, "transit/keys/other: "),
    "a key that never was": (_missing, SIGNING_DENIED, "transit/keys/missing: is not there"),
    "a deleted key": (_deleted, SIGNING_DENIED, "transit/keys/deleted: is not there"),
    "a retired version": (_retired, SIGNING_DENIED, "version 1 is retired: min_encryption_version is 2"),
    "a version that went": (_trimmed, SIGNING_DENIED, "has no version 1, or no longer; the newest is 2"),
    "a version to come": (_key("openbao://digits?version=7"), SIGNING_DENIED, "no version 7"),
    "a key of Ed25519": (_another("edwards", "ed25519"), SIGNING_DENIED, "is of type ed25519, must be ecdsa-p256"),
    "a key of RSA": (_another("rivest", "rsa-2048"), SIGNING_DENIED, "is of type rsa-2048, must be ecdsa-p256"),
    "a key of P-384": (_another("longer", "ecdsa-p384"), SIGNING_DENIED, "is of type ecdsa-p384, must be ecdsa-p256"),
    "a key that encrypts": (_another("cipher", "aes256-gcm96"), SIGNING_DENIED, "is of type aes256-gcm96"),
    "another auth mount": (_set(AEGIS_VAULT_AUTH_MOUNT="k8s"), SIGNING_DENIED, "auth/k8s/login as role signer: "),
    "another transit mount": (_set(AEGIS_VAULT_TRANSIT_MOUNT="keys/eu"), SIGNING_DENIED, "keys/eu/keys/digits: "),
    "another namespace of the server": (_set(BAO_NAMESPACE="team/a"), SIGNING_DENIED, "as role signer: "),
    "no server": (lambda c: c.more.update(VAULT_ADDR=f"http://127.0.0.1:{free_port()}"), TRANSIENT, "no answer"),
    "no settings": (
        _set(VAULT_ADDR="http://vault.example:8200", AEGIS_VAULT_ROLE="", BAO_CACERT="/nowhere"), USAGE,
        "VAULT_ADDR: must be https://host[:port]; http:// only on loopback; BAO_CACERT: No such file",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("prepare", "code", "says"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_has_its_name_and_its_code_and_nothing_is_published(
    case: Case, prepare: Prepare, code: int, says: str
) -> None:
    prepare(case)
    before = case.bao.tokens()
    done = case.run()
    assert says in done.stderr
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not [*(case.world.root / "models").rglob("*")]
    assert not [*case.world.scratch.iterdir()]
    assert case.bao.tokens() == before


def test_a_sealed_server_is_asked_again_later(case: Case, tmp_path: Path) -> None:
    with openbao(tmp_path / "sealed") as server:
        case.bao = server
        server.key("digits")
        case.token_file(server.token)
        server.root.sys.seal()
        done = case.run()
    assert done.returncode == TRANSIENT
    assert "transit/keys/digits: not now (Vault is sealed)" in done.stderr
    assert not [*(case.world.root / "models").rglob("*")]


def test_a_token_file_that_everybody_may_read_is_refused(case: Case) -> None:
    case.token_file("s.x")
    (case.world.root / "vault-token").chmod(0o644)
    with pytest.raises(Permanent, match="AEGIS_VAULT_TOKEN_FILE: mode 0644 lets everyone in"):
        case.load()


# --- versions ---


def test_a_signer_keeps_the_version_that_was_the_newest_when_it_was_loaded(case: Case) -> None:
    _another("rotated")(case)
    first = case.load()
    case.bao.root.secrets.transit.rotate_key("rotated")
    second = case.load()
    case.key += "?version=1"
    pinned = case.load()
    assert [one.uri for one in (first, second, pinned)] == [f"openbao://rotated?version={n}" for n in (1, 2, 1)]
    for one, version in ((first, 1), (second, 2), (pinned, 1)):
        assert one.public_pem() == case.bao.public("rotated", version)
        signature.sign_file(DIGEST.hex(), one)  # which verifies


def test_two_versions_are_valid_until_one_is_revoked(case: Case) -> None:
    _another("life")(case)
    folders = []
    for version in (1, 2):
        case.trust(case.bao.public("life", version), f"life-{version}")
        model = case.world.root / "model"
        if version == 2:
            (model / "data.txt").write_text("another model")
        done = case.run()
        assert done.returncode == OK, done.stderr
        folders.append(case.world.folder(case.world.output("package")))
        case.bao.root.secrets.transit.rotate_key("life")
    assert [verify_directory(folder, case.world.trusted) for folder in folders] == [[], []]
    assert case.run().returncode == SIGNING_DENIED  # the third version is trusted nowhere
    (case.world.trusted_dir / "life-1.pub").unlink()
    (case.world.trusted_dir / "vault.pub").unlink()  # the same key
    first, second = (verify_directory(folder, case.world.trusted) for folder in folders)
    assert any("signed by a key that is not trusted" in fault for fault in first)
    assert second == []


def test_the_policy_of_the_documentation_is_the_one_that_is_tested() -> None:
    text = (Path(__file__).parents[2] / "docs" / "keys.md").read_text()
    assert POLICY.format(key="aegis") in text


@pytest.mark.parametrize("field", ["min_encryption_version", "min_decryption_version"])
def test_a_version_retired_between_login_and_sign_is_no_broken_server(case: Case, field: str) -> None:
    name = f"late-{field.replace('_', '-')}"
    _another(name)(case)
    signer = case.load()
    case.bao.root.secrets.transit.rotate_key(name)
    case.bao.configure(name, **{field: 2})
    with pytest.raises(Permanent, match=r"version 1 is retired|has no version 1") as caught:
        signer.sign_digest(DIGEST)
    assert (caught.value.exit_code, case.pauses) == (SIGNING_DENIED, [])


@pytest.mark.parametrize("size", [0, 3, 31, 33])
def test_only_a_sha256_digest_is_signed(case: Case, size: int) -> None:
    signer = case.load()
    with pytest.raises(ValueError, match="32 bytes"):
        signer.sign_digest(b"x" * size)


# --- what goes wrong on the way ---


@pytest.fixture
def proxy(case: Case) -> Iterator[FaultProxy]:
    with FaultProxy("key server", case.bao.port) as proxy:
        case.more["VAULT_ADDR"] = proxy.url
        yield proxy


def calls(proxy: FaultProxy, path: str) -> int:
    return len([call for call in proxy.calls if re.fullmatch(path, call.path)])


def test_a_token_that_ends_between_login_and_sign_costs_one_login(case: Case, proxy: FaultProxy) -> None:
    case.bao.role("brief", "digits", "signing", ttl="1s", max_ttl="1s")
    case.more["AEGIS_VAULT_ROLE"] = "brief"
    signer = case.load()
    proxy.calls.clear()
    late = proxy.add(Fault(Kind.DELAY, ".*/login", delay_s=1.6))
    signature.sign_file(DIGEST.hex(), signer)
    assert (late.fired, calls(proxy, ".*/login"), calls(proxy, ".*/sign/digits"), case.pauses) == (1, 2, 2, [])


def test_tokens_that_always_end_too_early_are_a_refusal(case: Case, proxy: FaultProxy) -> None:
    case.bao.role("brief", "digits", "signing", ttl="1s", max_ttl="1s")
    case.more["AEGIS_VAULT_ROLE"] = "brief"
    signer = case.load()
    proxy.calls.clear()
    proxy.add(Fault(Kind.DELAY, ".*/login", delay_s=1.6, times=9))
    with pytest.raises(Permanent, match="transit/sign/digits: permission denied") as caught:
        signer.sign_digest(DIGEST)
    assert (caught.value.exit_code, calls(proxy, ".*/login"), case.pauses) == (SIGNING_DENIED, 2, [])


@pytest.mark.parametrize("path", [".*/login", ".*/keys/digits", ".*/sign/digits"])
def test_a_slow_server_is_given_up_in_time(
    case: Case, proxy: FaultProxy, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(keys.WAITS) + (1 + len(keys.WAITS)) * 2 * vault.TIMEOUT[1] < 30
    monkeypatch.setattr(vault, "TIMEOUT", (0.3, 0.3))
    slow = proxy.add(Fault(Kind.DELAY, path, delay_s=30, times=9))
    with pytest.raises(Temporary, match=r"no answer \(ReadTimeout") as caught:
        case.load().sign_digest(DIGEST)
    assert caught.value.exit_code == TRANSIENT
    assert (slow.fired, case.pauses) == (3, list(keys.WAITS))


FAULTS = {
    "reset": Fault(Kind.REFUSE),
    "reset after the work": Fault(Kind.RESET_AFTER),
    "a gateway": Fault(Kind.ANSWER, answer=told(502, b"<html>bad gateway")),
    "a gateway's patience": Fault(Kind.ANSWER, answer=told(504, b"")),
    "too many": Fault(Kind.ANSWER, answer=told(429, b"{}")),
    "a standby": Fault(Kind.ANSWER, answer=told(412, b'{"errors": ["required index state not present"]}')),
    "a hiccup": Fault(Kind.ANSWER, answer=told(500, b'{"errors": ["internal error"]}', Content_Type=JSON)),
}  # fmt: skip


@pytest.mark.parametrize("path", [".*/login", ".*/keys/digits", ".*/sign/digits"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_passing_failure_is_waited_for_and_a_lasting_one_is_temporary(
    case: Case, proxy: FaultProxy, fault: Fault, path: str
) -> None:
    once = proxy.add(Fault(fault.kind, path, answer=fault.answer, times=2))
    signature.sign_file(DIGEST.hex(), case.load())
    assert (once.fired, case.pauses) == (2, list(keys.WAITS))
    proxy.clear()
    lasting = proxy.add(Fault(fault.kind, path, answer=fault.answer, times=99))
    with pytest.raises(Temporary):
        case.load().sign_digest(DIGEST)
    assert lasting.fired == 3


def test_a_lost_revocation_costs_nothing(case: Case, proxy: FaultProxy) -> None:
    lost = proxy.add(Fault(Kind.REFUSE, ".*/revoke-self", times=9))
    signature.sign_file(DIGEST.hex(), case.load())
    assert (lost.fired, case.pauses) == (2, [])


ANSWERS = {
    "a login page": told(200, b"<html>please log in", Content_Type="text/html"),
    "another place": told(307, b"", Location="http://127.0.0.1:9/v1/x"),
    "nothing": told(204, b""),
    "a list": told(200, b"[]", Content_Type=JSON),
    "no data": told(200, b'{"data": null}', Content_Type=JSON),
    "other data": told(200, b'{"data": {"type": "ecdsa-p256", "keys": []}}', Content_Type=JSON),
    "another version's signature": told(200, b'{"data": {"signature": "vault:v2:AAAA"}}', Content_Type=JSON),
    "no base64": told(200, b'{"data": {"signature": "vault:v1:A?A"}}', Content_Type=JSON),
}  # fmt: skip


@pytest.mark.parametrize("path", [".*/login", ".*/keys/digits", ".*/sign/digits"])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_what_is_no_answer_of_such_a_server_is_refused(
    case: Case, proxy: FaultProxy, answer: Message, path: str
) -> None:
    proxy.add(Fault(Kind.ANSWER, path, answer=answer, times=9))
    with pytest.raises(Permanent, match="the answer is not one of such a server") as caught:
        case.load().sign_digest(DIGEST)
    assert (caught.value.exit_code, case.pauses) == (SIGNING_DENIED, [])


def test_an_answer_without_end_is_not_read(case: Case, proxy: FaultProxy) -> None:
    proxy.add(Fault(Kind.ANSWER, ".*/keys/digits", answer=told(200, b" " * (vault.MAX_ANSWER + 1)), times=9))
    with pytest.raises(Temporary, match="ContentDecodingError"):
        case.load()


def test_a_kill_at_any_call_leaves_what_the_next_try_completes(case: Case, proxy: FaultProxy) -> None:
    """Once for each call of the step that is not killed: login, key and revocation, then each of three signatures."""
    assert case.run().returncode == OK
    calls = len(proxy.calls)
    assert calls == 3 + 3 * 3
    store = case.world.root / "models"
    for number, kind in itertools.product(range(1, calls + 1), (Kind.KILL_BEFORE, Kind.KILL_AFTER)):
        shutil.rmtree(store / "packages")
        fault = proxy.add(Fault(kind, nth=number))
        assert (case.run().returncode, fault.fired) == (-9, 1), f"{kind} at call {number}"
        proxy.clear()
        assert not [*store.rglob("result.json")], "nothing counts before all of it is signed"
        assert case.run().returncode == OK
        folder = case.world.folder(case.world.output("package"))
        assert verify_directory(folder, case.world.trusted, model="digits", environment="default") == []


def test_a_signature_that_does_not_verify_never_leaves(case: Case, proxy: FaultProxy) -> None:
    case.bao.key("impostor")
    forged = case.bao.root.secrets.transit.sign_data("impostor", hash_input="aGk=", marshaling_algorithm="asn1")
    body = json.dumps({"data": forged["data"]}).encode()
    proxy.add(Fault(Kind.ANSWER, ".*/sign/digits", answer=told(200, body, Content_Type=JSON)))
    with pytest.raises(signature.Untrusted, match="does not match"):
        signature.sign_file(DIGEST.hex(), case.load())


def test_a_server_s_words_are_told_without_a_token_in_them(case: Case, proxy: FaultProxy) -> None:
    body = json.dumps({"errors": [f"bad token {case.jwt}\x1b[31m"]}).encode()
    proxy.add(Fault(Kind.ANSWER, ".*/login", answer=told(403, body, Content_Type=JSON)))
    done = case.run()
    assert done.returncode == SIGNING_DENIED
    assert "as role signer: bad token ***\ufffd[31m;" in done.stderr


def test_no_namespace_no_proxy_and_no_token_of_the_process_is_used(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, dict[str, str]]] = []

    class Trap(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, dict(self.headers)))
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Trap)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        case.more["VAULT_ADDR"] = f"http://127.0.0.1:{server.server_port}"
        case.more["BAO_NAMESPACE"] = "team/a"
        for name in ("VAULT_TOKEN", "VAULT_NAMESPACE", "http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9/x")
        with pytest.raises(Permanent):
            case.load()
    finally:
        server.shutdown()
        thread.join(20)
        server.server_close()
    ((path, headers),) = seen
    assert path == "/v1/auth/kubernetes/login"
    assert headers["X-Vault-Namespace"] == "team/a"
    assert "X-Vault-Token" not in headers


@pytest.mark.parametrize(
    "uri",
    [
        "openbao://", "openbao://a/b", "openbao://../x", "openbao://key?version=0", "openbao://key?version=-1",
        "openbao://key?version=1&x", "openbao://user:hunter2@host/key", "hashivault://key#1", "openbao://k\n",
        "openbao://-k", "openbao://é",
    ],
)  # fmt: skip
def test_another_spelling_is_refused_before_anybody_is_asked(uri: str) -> None:
    with pytest.raises(Permanent, match=r"must be hashivault://KEY or openbao://KEY") as caught:
        keys.load(uri, {})
    assert caught.value.exit_code == SIGNING_DENIED
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "ftp://vault",
        "http://10.0.0.1:8200",
        "https://u:p@vault",
        "https://vault/x",
        "https://",
        "https://v:99999",
        "v:1",
    ],
)
def test_an_address_is_https_or_loopback_and_nothing_else(address: str) -> None:
    with pytest.raises(Permanent, match="VAULT_ADDR: must be https://") as caught:
        keys.load("hashivault://k", {"VAULT_ADDR": address, "AEGIS_VAULT_ROLE": "r"})
    assert caught.value.exit_code == USAGE


def test_every_fault_of_the_settings_is_told_at_once() -> None:
    env = {
        "BAO_ADDR": "x", "AEGIS_VAULT_ROLE": "r", "AEGIS_VAULT_TOKEN_FILE": "/t", "VAULT_NAMESPACE": "../x",
        "AEGIS_VAULT_TRANSIT_MOUNT": "a//b", "AEGIS_VAULT_AUTH_MOUNT": "/", "VAULT_CACERT": "/nowhere",
    }  # fmt: skip
    with pytest.raises(Permanent) as caught:
        keys.load("openbao://k", env)
    assert caught.value.exit_code == USAGE
    assert caught.value.faults.keys() == {
        "BAO_ADDR", "VAULT_NAMESPACE", "VAULT_CACERT", "AEGIS_VAULT_TRANSIT_MOUNT", "AEGIS_VAULT_AUTH_MOUNT",
        "AEGIS_VAULT_ROLE",
    }  # fmt: skip
