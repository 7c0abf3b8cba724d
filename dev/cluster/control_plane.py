"""etcd, the API server, the controller manager and the scheduler."""

from __future__ import annotations

from pathlib import Path

from .commands import Kubectl, UserError, until
from .processes import Processes
from .settings import DOMAIN, HOST_IP, POD_NETWORK, SERVICE_NETWORK, Settings
from .ui import Report

NAMES = ("scheduler", "controller-manager", "apiserver", "etcd")
_ETCD = f"https://{HOST_IP}:2379"
_ETCD_PEER = f"https://{HOST_IP}:2380"


def ensure(settings: Settings, processes: Processes, programs: Path, report: Report) -> None:
    """Start the parts that do not run, and wait until the API server is ready."""
    started = processes.ensure("etcd", _etcd(settings, programs))
    processes.ensure("apiserver", _apiserver(settings, programs))
    kubectl = Kubectl(programs / "kubectl", settings.user_config("admin"))

    def ready() -> bool:
        for name in ("etcd", "apiserver"):
            if not processes.alive(name):
                raise UserError(
                    f"{name} ended: {processes.log_tail(name)} (if its data was damaged by a "
                    "crash, take the cluster down and up again)"
                )
        return kubectl.works("get", "--raw", "/readyz")

    until(
        ready,
        lambda: f"the API server is not ready: {processes.log_tail('apiserver')}",
        report,
    )
    processes.ensure("controller-manager", _controller_manager(settings, programs))
    processes.ensure("scheduler", _scheduler(settings, programs))
    if started:

        def has_accounts() -> bool:
            processes.must_live("controller-manager")
            return kubectl.works("get", "serviceaccount", "default", "-n", "default")

        missing = "the controller manager has created no service account: "
        until(has_accounts, lambda: missing + processes.log_tail("controller-manager"), report)


def _etcd(settings: Settings, programs: Path) -> list[str | Path]:
    pki = settings.pki
    return [
        programs / "etcd",
        "--name=default",
        f"--data-dir={settings.state / 'etcd'}",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={_ETCD_PEER}",
        f"--initial-advertise-peer-urls={_ETCD_PEER}",
        f"--initial-cluster=default={_ETCD_PEER}",
        *(f"--{side}cert-file={pki / 'etcd.crt'}" for side in ("", "peer-")),
        *(f"--{side}key-file={pki / 'etcd.key'}" for side in ("", "peer-")),
        *(f"--{side}trusted-ca-file={pki / 'etcd-ca.crt'}" for side in ("", "peer-")),
        "--client-cert-auth",
        "--peer-client-cert-auth",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _apiserver(settings: Settings, programs: Path) -> list[str | Path]:
    pki = settings.pki
    return [
        programs / "kube-apiserver",
        f"--etcd-servers={_ETCD}",
        f"--etcd-cafile={pki / 'etcd-ca.crt'}",
        f"--etcd-certfile={pki / 'etcd.crt'}",
        f"--etcd-keyfile={pki / 'etcd.key'}",
        f"--bind-address={HOST_IP}",
        f"--advertise-address={HOST_IP}",
        "--secure-port=6443",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
        f"--service-account-key-file={pki / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--anonymous-auth=false",
        "--allow-privileged=true",
        "--profiling=false",
    ]


def _controller_manager(settings: Settings, programs: Path) -> list[str | Path]:
    config = settings.user_config("controller-manager")
    return [
        programs / "kube-controller-manager",
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        f"--bind-address={HOST_IP}",
        "--leader-elect=false",
        "--use-service-account-credentials",
        f"--root-ca-file={settings.pki / 'ca.crt'}",
        f"--service-account-private-key-file={settings.pki / 'service-accounts.key'}",
        f"--cluster-signing-cert-file={settings.pki / 'ca.crt'}",
        f"--cluster-signing-key-file={settings.pki / 'ca.key'}",
        f"--cluster-cidr={POD_NETWORK}",
    ]


def _scheduler(settings: Settings, programs: Path) -> list[str | Path]:
    config = settings.user_config("scheduler")
    return [
        programs / "kube-scheduler",
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        f"--bind-address={HOST_IP}",
        "--leader-elect=false",
    ]
