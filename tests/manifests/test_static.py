"""What stands in the overlays, whoever applies them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from aegis import events
from alert_receiver import mapping
from alert_receiver.settings import from_env
from retrain_trigger.function import Settings as TriggerSettings
from tests.manifests.overlays import (
    KNATIVE,
    OVERLAYS,
    ROOT,
    Json,
    admitted,
    built,
    key,
    of,
    pods,
    typed_models,
    workflow_template,
)
from tests.runner.test_template import lost

SECRETS = {
    "aegis-seal",
    "aegis-receiver-credentials",
    "aegis-storage",
    "aegis-mlflow",
    "aegis-registry",
    "aegis-signing",
}
"""Made by a person, by the commands of docs/install.md."""
PEOPLES_CONFIG = {"aegis-trusted-keys", "aegis-believed-keys", "kafka-broker-config"}
OURS = {"aegis-receiver", "aegis-trigger", "aegis-train-model", "aegis-sign-model"}


def walk(value: Any) -> list[tuple[str, Any]]:
    """Every (field name, value) anywhere below."""
    if isinstance(value, list):
        return [found for item in value for found in walk(item)]
    if isinstance(value, dict):
        return [(name, item) for name, item in value.items()] + [f for item in value.values() for f in walk(item)]
    return []


def containers(document: Any) -> list[Json]:
    """Every container anywhere below, Argo's included."""
    fields = walk(document)
    lists = [c for name, found in fields if name in ("containers", "initContainers", "sidecars") for c in found]
    return lists + [found for name, found in fields if name == "container" and isinstance(found, dict)]


# --- the whole ---


def test_the_objects_are_these(overlay: tuple[Json, ...]) -> None:
    keys = [key(document) for document in overlay]
    assert len(set(keys)) == len(keys)
    cluster_wide = {k for k, namespace, _ in keys if not namespace}
    assert cluster_wide == {
        "Namespace", "CustomResourceDefinition.apiextensions.k8s.io", "ClusterRole.rbac.authorization.k8s.io",
        "ValidatingAdmissionPolicy.admissionregistration.k8s.io",
        "ValidatingAdmissionPolicyBinding.admissionregistration.k8s.io",
    }  # fmt: skip
    assert {namespace for _, namespace, _ in keys} == {"", "aegis", "aegis-workflows"}


def test_plain_has_nothing_of_knative_and_the_others_have(kubectl: str) -> None:
    kinds = {o: {d["apiVersion"] for d in built(kubectl, o)} for o in OVERLAYS}
    assert not {version for version in kinds["plain"] if "knative" in version}
    assert kinds["quickstart"] == kinds["production"] - {"policy/v1"} | {"apps/v1"}


def test_everything_is_labelled(overlay: tuple[Json, ...]) -> None:
    for document in overlay:
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "aegis", key(document)
        assert labels["app.kubernetes.io/part-of"] == "aegis", key(document)
        if document["kind"] not in ("Namespace", "CustomResourceDefinition"):
            assert labels["app.kubernetes.io/component"], key(document)


def test_kinds_of_others_are_what_their_models_read(overlay: tuple[Json, ...]) -> None:
    models = typed_models()
    core = re.compile(r"v1|(apps|batch|policy|.*\.k8s\.io)/v1")  # those are the API server's to judge: test_apply.py
    for document in overlay:
        if core.fullmatch(document["apiVersion"]):
            continue
        model = models[f"{document['apiVersion']} {document['kind']}"]
        read = model.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
        # Knative's CRDs leave `timeout` open, so the models made of them lack it. Eventing 1.22 reads it by default.
        gone = [field for field in lost(document, read) if field != ".spec.delivery.timeout"]
        assert gone == [], key(document)


def test_examples_are_what_their_models_read() -> None:
    binding = yaml.safe_load((KNATIVE / "examples" / "sink-binding.yaml").read_text())
    read = typed_models()["sources.knative.dev/v1 SinkBinding"].model_validate(binding)
    assert lost(binding, read.model_dump(mode="json", by_alias=True, exclude_unset=True)) == []


def test_no_secret_stands_in_a_manifest(overlay: tuple[Json, ...]) -> None:
    for document in overlay:
        if document["kind"] == "Secret":
            assert document["type"] == "kubernetes.io/service-account-token"
            assert not {"data", "stringData"} & document.keys()
    for container in (c for document in overlay for c in containers(document)):
        for variable in container.get("env", []):
            if not variable["name"].endswith("_FILE"):
                assert not re.search("TOKEN|PASSWORD|SECRET", variable["name"]), variable


def test_namespaces_take_only_restricted_pods(overlay: tuple[Json, ...]) -> None:
    for name in ("aegis", "aegis-workflows"):
        labels = of(overlay, "Namespace")[name]["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


# --- what refers to what ---


def test_what_is_referred_to_exists_or_is_a_person_s(overlay: tuple[Json, ...]) -> None:
    there = {key(document) for document in overlay}
    readme = (ROOT / "docs" / "install.md").read_text()
    for document in overlay:
        if document["kind"] == "CustomResourceDefinition":
            continue
        namespace = document["metadata"].get("namespace", "")
        for name, value in walk(document):
            if not isinstance(value, dict):
                continue
            if name in ("configMap", "configMapRef", "configMapKeyRef"):
                known = ("ConfigMap", namespace, value["name"]) in there
                assert known or (value["name"] in PEOPLES_CONFIG and value.get("optional")), value
            elif name in ("secret", "secretRef"):
                secret = value.get("secretName") or value["name"]
                assert secret in SECRETS, value
                assert value.get("optional"), f"{secret}: without it a pod would hang, and not say why"
                assert secret in readme
        for account in (value for name, value in walk(document) if name == "serviceAccountName"):
            assert ("ServiceAccount", namespace, account) in there, key(document)


def test_every_configmap_key_that_a_step_needs_is_set(overlay: tuple[Json, ...]) -> None:
    """All are optional for Kubernetes, so that a step says itself what is missing; these are optional indeed."""
    configs = of(overlay, "ConfigMap")
    wanted = {
        (ref["name"], ref["key"])
        for name, ref in walk(workflow_template(overlay))
        if name == "configMapKeyRef" and ref["name"] != "aegis-limits"
    }
    missing = {(name, field) for name, field in wanted if field not in configs[name]["data"]}
    vault = {"ADDR", "NAMESPACE", "CACERT"}
    ours = {"ROLE", "AUTH_MOUNT", "TRANSIT_MOUNT", "TOKEN_FILE"}
    optional = {"AEGIS_ALLOW_PICKLE", "AEGIS_SIGNING_PASSWORD_FILE"}
    optional |= {f"VAULT_{name}" for name in vault} | {f"AEGIS_VAULT_{name}" for name in ours}
    assert missing == {("aegis-steps", name) for name in optional}
    assert int(configs["aegis-limits"]["data"]["training"]) >= 1


def test_a_mount_has_its_volume(overlay: tuple[Json, ...]) -> None:
    for name, template in pods(overlay):
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        mounted = {m["name"] for c in template["spec"]["containers"] for m in c.get("volumeMounts", [])}
        assert volumes == mounted, name


# --- pods ---


def test_containers_are_locked_down_and_sized(overlay: tuple[Json, ...]) -> None:
    found = [(key(d), c) for d in overlay if d["kind"] != "CustomResourceDefinition" for c in containers(d)]
    assert len(found) >= 8
    for name, container in found:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
        assert "memory" in container["resources"]["limits"], name


def test_pods_are_no_root_s(overlay: tuple[Json, ...]) -> None:
    for name, template in pods(overlay):
        context = template["spec"].get("securityContext") or template["spec"]["containers"][0]["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] == 65532, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name


def test_images_are_ours_with_a_tag_and_the_signer_s_is_what_the_policy_admits(overlay: tuple[Json, ...]) -> None:
    images = {c["image"] for document in overlay for c in containers(document)} - {None}
    assert {image.partition(":")[0] for image in images} - {"ghcr.io/mlflow/mlflow"} == OURS
    assert all(":" in image for image in images)
    signers = {
        c["image"]
        for t in workflow_template(overlay)["spec"]["templates"]
        if t.get("serviceAccountName") == "aegis-signer"
        for c in containers(t)
    }
    assert signers == {admitted(overlay)["image"]}


def test_mlflow_is_the_version_that_the_steps_speak_to(kubectl: str) -> None:
    pinned = re.search(r"^mlflow==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned
    for overlay in ("quickstart", "plain"):
        (container,) = containers(of(built(kubectl, overlay), "Deployment")["mlflow"])
        assert container["image"] == f"ghcr.io/mlflow/mlflow:v{pinned[1]}"


def test_only_the_trigger_s_pods_have_a_token(overlay: tuple[Json, ...]) -> None:
    mounting = {name for name, t in pods(overlay) if t["spec"].get("automountServiceAccountToken") is not False}
    assert {name.partition(" ")[2] for name in mounting} == {"retrain-trigger"}
    accounts = of(overlay, "ServiceAccount")
    assert {n for n, a in accounts.items() if a.get("automountServiceAccountToken") is not False} == {"retrain-trigger"}
    spec = workflow_template(overlay)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert not [t for t in spec["templates"] if "automountServiceAccountToken" in t or "executor" in t]


def test_sign_and_promote_alone_run_as_the_signer(overlay: tuple[Json, ...]) -> None:
    accounts = {t["name"]: t.get("serviceAccountName") for t in workflow_template(overlay)["spec"]["templates"]}
    assert {name for name, account in accounts.items() if account} == {"sign", "promote"}
    assert {account for account in accounts.values() if account} == {"aegis-signer"}


def test_who_moves_a_champion_by_hand_has_what_promote_has(overlay: tuple[Json, ...]) -> None:
    retrain, champion = (workflow_template(overlay, name)["spec"] for name in ("aegis-retrain", "aegis-champion"))
    own = {"entrypoint", "onExit", "arguments", "templates", "synchronization", "activeDeadlineSeconds"}
    assert {n: v for n, v in champion.items() if n not in own} == {n: v for n, v in retrain.items() if n not in own}
    promote = next(t for t in retrain["templates"] if t["name"] == "promote")
    settings = {e["name"] for e in promote["container"]["env"] if "valueFrom" in e} - {"AEGIS_ALLOW_PICKLE"}
    for step in champion["templates"]:
        same = ("serviceAccountName", "metadata", "retryStrategy")
        assert {n: step[n] for n in same} == {n: promote[n] for n in same}
        ours, theirs = step["container"], promote["container"]
        for part in ("image", "securityContext", "resources", "envFrom", "terminationMessagePolicy"):
            assert ours[part] == theirs[part]
        assert {e["name"] for e in ours["env"] if "valueFrom" in e} == settings
        assert {v["name"] for v in step["volumes"]} - {"believed"} == {v["name"] for v in promote["volumes"]}
        given = {p["name"] for p in champion["arguments"]["parameters"]}
        used = {m for e in ours["env"] for m in re.findall(r"workflow\.parameters\.(\w+)", e.get("value", ""))}
        assert used <= given


def test_sign_and_promote_alone_get_a_token_for_the_vault_and_reach_it(overlay: tuple[Json, ...]) -> None:
    steps = workflow_template(overlay)["spec"]["templates"]
    tokens = {t["name"]: v["projected"]["sources"] for t in steps for v in t.get("volumes", []) if "projected" in v}
    token = {"path": "token", "audience": "vault", "expirationSeconds": 600}
    assert tokens == {name: [{"serviceAccountToken": token}] for name in ("sign", "promote")}
    (policy,) = (d for d in overlay if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == "vault")
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    labelled = {t["name"] for t in steps if chosen.items() <= t.get("metadata", {}).get("labels", {}).items()}
    assert labelled == {"sign", "promote"}
    assert policy["spec"]["egress"][0]["ports"] == [{"protocol": "TCP", "port": 8200}]


def test_probes_ask_what_the_functions_answer(overlay: tuple[Json, ...]) -> None:
    functions = [(n, t) for n, t in pods(overlay) if n.endswith(("alert-receiver", "retrain-trigger"))]
    assert len(functions) == 2
    for name, template in functions:
        (container,) = template["spec"]["containers"]
        assert container["livenessProbe"]["httpGet"]["path"] == "/health/liveness", name
        assert container["readinessProbe"]["httpGet"]["path"] == "/health/readiness", name


# --- settings ---


def environment(overlay: tuple[Json, ...], component: str) -> dict[str, str]:
    """What a function's container finds in its environment."""
    (container,) = (c for _, t in pods(overlay) for c in t["spec"]["containers"] if c["name"] == component)
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= of(overlay, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    return found | {variable["name"]: variable["value"] for variable in container.get("env", [])}


def test_the_functions_accept_their_settings(overlay: tuple[Json, ...]) -> None:
    from aegis.settings import load

    trigger = load(TriggerSettings, environment(overlay, "trigger"))
    assert trigger.namespace == "aegis-workflows"
    assert [str(path) for path in trigger.seal_keys] == ["/etc/aegis/seal/seal-key"]
    receiver = from_env(environment(overlay, "receiver"))
    assert str(receiver.settings.seal_key_file) == "/etc/aegis/seal/seal-key"
    config = mapping.load(of(overlay, "ConfigMap")["aegis-receiver"]["data"]["config.yaml"])
    assert [str(c.file) for c in config.credentials] == ["/etc/aegis/credentials/alertmanager-token"]


def test_unknown_models_are_taken_on_only_where_one_tries(kubectl: str) -> None:
    taken = {o: environment(built(kubectl, o), "trigger").get("AEGIS_CREATE_UNKNOWN", "false") for o in OVERLAYS}
    assert taken == {"quickstart": "true", "production": "false", "plain": "false"}


def test_trigger_and_steps_allow_the_same_data(overlay: tuple[Json, ...]) -> None:
    steps = of(overlay, "ConfigMap")["aegis-steps"]["data"]
    assert environment(overlay, "trigger")["AEGIS_DATASET_PREFIXES"] == steps["AEGIS_DATASET_PREFIXES"]


def test_the_receiver_and_the_last_step_speak_to_the_same_place(overlay: tuple[Json, ...]) -> None:
    steps = of(overlay, "ConfigMap")["aegis-steps"]["data"]
    assert environment(overlay, "receiver")["K_SINK"] == steps["AEGIS_SINK"]


def test_the_budget_is_never_reset_by_applying(overlay: tuple[Json, ...]) -> None:
    assert "data" not in of(overlay, "ConfigMap")["aegis-budget"]


# --- Knative ---

PERIOD = re.compile(r"PT(\d+(?:\.\d+)?)S")


def waited(delivery: Json) -> float:
    """Seconds until a delivery is given up, as Eventing counts: retries after delay * 2^n, n from 0."""
    delay, timeout = (float(PERIOD.fullmatch(delivery[name])[1]) for name in ("backoffDelay", "timeout"))  # type: ignore[index]  # one that does not match fails the test
    assert delivery["backoffPolicy"] == "exponential"
    return float((delivery["retry"] + 1) * timeout + sum(delay * 2**n for n in range(delivery["retry"])))


@pytest.mark.parametrize("name", ["quickstart", "production"])
def test_every_delivery_names_all_of_it(kubectl: str, name: str) -> None:
    overlay = built(kubectl, name)
    found = [*of(overlay, "Trigger").values(), *of(overlay, "Broker").values()]
    assert len(found) == 5
    for document in found:
        delivery = document["spec"]["delivery"]
        assert delivery.keys() == {"deadLetterSink", "retry", "backoffPolicy", "backoffDelay", "timeout"}
        assert delivery["deadLetterSink"]["ref"]["name"] == "retrain-trigger"
        assert delivery["deadLetterSink"]["uri"] == "/dead-letters"
        assert delivery == {**found[0]["spec"]["delivery"], "deadLetterSink": delivery["deadLetterSink"]}


def test_the_in_memory_broker_gives_up_before_the_receiver_and_alertmanager_do(kubectl: str) -> None:
    overlay = built(kubectl, "quickstart")
    assert of(overlay, "Broker")["default"]["metadata"]["annotations"] == {
        "eventing.knative.dev/broker.class": "MTChannelBasedBroker"
    }
    settings = from_env(environment(overlay, "receiver")).settings
    for trigger in of(overlay, "Trigger").values():
        once = waited(trigger["spec"]["delivery"])
        assert once == pytest.approx(3.6)
        assert once < settings.sink_timeout.total_seconds()
        assert 2 * once < settings.deadline.total_seconds() == 8.0  # the dead-letter sink may hang as well


def test_kafka_s_broker_outlasts_an_api_server_s_restart(kubectl: str) -> None:
    overlay = built(kubectl, "production")
    broker = of(overlay, "Broker")["default"]
    assert broker["metadata"]["annotations"] == {"eventing.knative.dev/broker.class": "Kafka"}
    assert broker["spec"]["config"]["name"] == "kafka-broker-config"
    delivery = broker["spec"]["delivery"]
    assert sum(2**n for n in range(delivery["retry"])) == 255


@pytest.mark.parametrize("name", ["quickstart", "production"])
def test_each_event_goes_where_it_is_understood(kubectl: str, name: str) -> None:
    overlay = built(kubectl, name)
    specs = [trigger["spec"] for trigger in of(overlay, "Trigger").values()]
    routes = {spec["filter"]["attributes"]["type"]: spec["subscriber"]["uri"] for spec in specs}
    assert routes == {
        events.DETECTED: "/",
        events.RESOLVED: "/",
        events.FINISHED: "/",
        events.REJECTED: "/dead-letters",
    }
    assert {spec["subscriber"]["ref"]["name"] for spec in specs} == {"retrain-trigger"}
    (ping,) = of(overlay, "PingSource").values()
    assert (ping["spec"]["schedule"], ping["spec"]["sink"]["uri"]) == ("* * * * *", "/reconcile")


def test_production_tells_knative_for_whom_its_tokens_are(kubectl: str) -> None:
    overlay = built(kubectl, "production")
    audience = "serving.knative.dev/service/aegis/retrain-trigger"
    for trigger in of(overlay, "Trigger").values():
        assert trigger["spec"]["subscriber"]["audience"] == audience
        assert trigger["spec"]["delivery"]["deadLetterSink"]["audience"] == audience
    assert of(overlay, "PingSource")["reconcile"]["spec"]["sink"]["audience"] == audience


@pytest.mark.parametrize(("name", "low"), [("quickstart", "1"), ("production", "2")])
def test_services_are_the_cluster_s_own_and_bounded(kubectl: str, name: str, low: str) -> None:
    services = of(built(kubectl, name), "Service", "serving.knative.dev")
    assert services.keys() == {"alert-receiver", "retrain-trigger"}
    for service in services.values():
        assert service["metadata"]["labels"]["networking.knative.dev/visibility"] == "cluster-local"
        notes = service["spec"]["template"]["metadata"]["annotations"]
        assert notes["autoscaling.knative.dev/min-scale"] == low
        assert int(notes["autoscaling.knative.dev/max-scale"]) > int(low)
        assert service["spec"]["template"]["spec"]["containerConcurrency"] > 0
    receiver = services["alert-receiver"]["spec"]["template"]["spec"]
    settings = from_env(environment(built(kubectl, name), "receiver")).settings
    assert receiver["containerConcurrency"] <= settings.max_in_flight
    assert receiver["timeoutSeconds"] > settings.deadline.total_seconds()


def test_a_drained_node_leaves_one_of_each(kubectl: str) -> None:
    production = {name: p["spec"] for name, p in of(built(kubectl, "production"), "PodDisruptionBudget").items()}
    assert production == {
        name: {"minAvailable": 1, "selector": {"matchLabels": {"serving.knative.dev/service": name}}}
        for name in ("alert-receiver", "retrain-trigger")
    }
    plain = built(kubectl, "plain")
    deployments = of(plain, "Deployment")
    for name, budget in of(plain, "PodDisruptionBudget").items():
        labels = deployments[name]["spec"]["template"]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert budget["spec"]["minAvailable"] < deployments[name]["spec"]["replicas"]


def test_a_service_finds_its_pods(overlay: tuple[Json, ...]) -> None:
    deployments = of(overlay, "Deployment")
    for name, service in of(overlay, "Service", "").items():
        template = deployments[name]["spec"]["template"]
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ports = {port["name"] for c in template["spec"]["containers"] for port in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_the_cronjob_posts_where_the_trigger_listens(kubectl: str) -> None:
    (container,) = containers(of(built(kubectl, "plain"), "CronJob")["reconcile"])
    compile(container["args"][0], "reconcile", "exec")
    assert "http://retrain-trigger.aegis.svc.cluster.local/reconcile" in container["args"][0]
    assert "retrain-trigger" in of(built(kubectl, "plain"), "Service", "")


# --- networks ---


def policies(overlay: tuple[Json, ...], namespace: str) -> dict[str, Json]:
    found = [d for d in overlay if d["kind"] == "NetworkPolicy" and d["metadata"]["namespace"] == namespace]
    return {d["metadata"]["name"]: d["spec"] for d in found}


def test_both_namespaces_deny_by_default(overlay: tuple[Json, ...]) -> None:
    for namespace in ("aegis", "aegis-workflows"):
        assert policies(overlay, namespace)["default-deny"] == {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
        }


def test_nobody_calls_a_step_and_no_step_reaches_a_node_s_credentials(overlay: tuple[Json, ...]) -> None:
    for name, spec in policies(overlay, "aegis-workflows").items():
        assert "ingress" not in spec, name
    blocks = [
        block for _, block in walk(policies(overlay, "aegis-workflows")) if isinstance(block, dict) and "cidr" in block
    ]
    assert [block["except"][0] for block in blocks] == ["169.254.0.0/16", "fe80::/10"]


def test_a_rule_without_a_peer_is_the_api_server_s_alone(overlay: tuple[Json, ...]) -> None:
    wide = {
        name
        for namespace in ("aegis", "aegis-workflows")
        for name, spec in policies(overlay, namespace).items()
        for rule in [*spec.get("egress", []), *spec.get("ingress", [])]
        if not {"to", "from"} & rule.keys()
    }
    assert wide == {"trigger-to-api-server"}


def test_network_policies_select_pods_that_exist(overlay: tuple[Json, ...]) -> None:
    components = {t["metadata"]["labels"]["app.kubernetes.io/component"] for _, t in pods(overlay)}
    steps = workflow_template(overlay)["spec"]["templates"]
    components |= {t["metadata"]["labels"]["app.kubernetes.io/component"] for t in steps if "metadata" in t}
    for namespace in ("aegis", "aegis-workflows"):
        for name, value in walk(policies(overlay, namespace)):
            if name != "podSelector":
                continue
            named = {value.get("matchLabels", {}).get("app.kubernetes.io/component")} - {None}
            for expression in value.get("matchExpressions", []):
                named |= set(expression["values"])
            assert named <= components


# --- the folder ---


def test_every_file_is_part_of_something() -> None:
    kustomizations = list(KNATIVE.rglob("kustomization.yaml"))
    for file in KNATIVE.rglob("*.yaml"):
        parts: tuple[str, ...] = file.relative_to(KNATIVE).parts
        if file.name == "kustomization.yaml" or parts[0] in ("examples", "observability"):
            continue
        names = {str(Path(*parts[-n:])) for n in (1, 2)}
        used = any(re.search(rf"[\s\[/]{re.escape(n)}\b", k.read_text()) for k in kustomizations for n in names)
        assert used, file
