"""The cluster's adapters keep the ports' contract on a real API server, and what is particular to Kubernetes."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from retrain_trigger.kubernetes import Client, KubernetesBudgets, KubernetesLedger, KubernetesWorkflows
from tests.cluster.control_plane import ControlPlane
from tests.trigger.contract import Opener, PortsContract
from tests.trigger.world import Ports


def kubernetes_ports(kubeconfig: Path, namespace: str) -> Ports:
    """The three ports over one client; all in one namespace."""
    client = Client(kubeconfig)
    return Ports(
        KubernetesLedger(client, namespace),
        KubernetesBudgets(client, namespace),
        KubernetesWorkflows(client, namespace),
    )


@pytest.fixture
def kubeconfig(control_plane: ControlPlane, tmp_path: Path) -> Path:
    return control_plane.kubeconfig(tmp_path / "kubeconfig")


class TestKubernetesPorts(PortsContract):
    @pytest.fixture
    def opener(self, kubeconfig: Path, namespace: str) -> Opener:
        return functools.partial(kubernetes_ports, kubeconfig, namespace)
