"""Who may use the cluster: certificates, kubeconfigs, and what a checkout gets of them."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .commands import run
from .settings import API_SERVICE_IP, API_URL, DOMAIN, HOST_IP, NODES, Settings

DAYS = "3650"


@dataclass(frozen=True)
class Certificate:
    """One certificate to issue."""

    name: str
    common_name: str
    organization: str = ""
    names: tuple[str, ...] = ()
    authority: str = "ca"


_CLUSTER_NAMES = (
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    f"DNS:kubernetes.default.svc.{DOMAIN}",
    "DNS:localhost",
    f"IP:{API_SERVICE_IP}",
    f"IP:{HOST_IP}",
)

USERS = (
    Certificate("admin", "admin", "system:masters"),
    Certificate("controller-manager", "system:kube-controller-manager"),
    Certificate("scheduler", "system:kube-scheduler"),
    Certificate("proxy", "system:kube-proxy"),
    Certificate("dns", "trainyard:dns"),
    Certificate("volumes", "trainyard:volumes"),
    *(Certificate(n.name, f"system:node:{n.name}", "system:nodes") for n in NODES),
)

_OTHERS = (
    Certificate("apiserver", "kube-apiserver", names=_CLUSTER_NAMES),
    Certificate("apiserver-kubelet", "apiserver-kubelet", "trainyard:kubelet-clients"),
    Certificate("etcd", "etcd", names=(f"IP:{HOST_IP}",), authority="etcd-ca"),
    *(
        Certificate(
            f"{n.name}-serving",
            f"system:node:{n.name}",
            "system:nodes",
            names=(f"DNS:{n.name}", f"IP:{n.ip}"),
        )
        for n in NODES
    ),
)


def create_certificates(settings: Settings) -> None:
    """Create every key, certificate and kubeconfig that does not exist yet."""
    folder = settings.pki
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for authority in ("ca", "etcd-ca"):
        _authority(folder, authority)
    if not (folder / "service-accounts.pub").exists():
        _key(folder / "service-accounts.key")
        pair = folder / "service-accounts"
        run(["openssl", "pkey", "-pubout", "-in", f"{pair}.key", "-out", f"{pair}.pub"])
    for certificate in (*USERS, *_OTHERS):
        _issue(folder, certificate)
    (settings.state / "kubeconfig").mkdir(exist_ok=True, mode=0o700)
    for user in USERS:
        path = settings.user_config(user.name)
        if not path.exists():
            write_private(path, kubeconfig(folder, user.name))


def kubeconfig(folder: Path, user: str) -> str:
    """A kubeconfig that carries its certificates inside, so that it can be copied anywhere."""

    def data(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    cluster = {"server": API_URL, "certificate-authority-data": data(folder / "ca.crt")}
    credentials = {
        "client-certificate-data": data(folder / f"{user}.crt"),
        "client-key-data": data(folder / f"{user}.key"),
    }
    context = {"cluster": "trainyard", "user": user}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "trainyard", "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "trainyard", "context": context}],
        "current-context": "trainyard",
    }
    return json.dumps(config, indent=1) + "\n"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.rename(path)


def write_checkout(
    settings: Settings, kubeconfig: str, programs: Path | None, registry: str = ""
) -> None:
    """Write .cluster/: kubeconfig, bin (a link to kubectl and helm) and env."""
    folder = settings.checkout
    folder.mkdir(exist_ok=True)
    if not settings.kubeconfig.exists() or settings.kubeconfig.read_text() != kubeconfig:
        write_private(settings.kubeconfig, kubeconfig)
    lines = [f"export KUBECONFIG={settings.kubeconfig}"]
    link = folder / "bin"
    link.unlink(missing_ok=True)
    if programs is not None:
        link.symlink_to(programs)
        lines.append(f'export PATH="{link}:$PATH"')
    if registry:
        lines.append(f"export TRAINYARD_REGISTRY={registry}/trainyard")
    (folder / "env").write_text("\n".join(lines) + "\n")
    owner = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if all(number.isdigit() for number in owner):  # made with sudo, used without
        for path in (folder, *folder.iterdir()):
            os.chown(path, int(owner[0]), int(owner[1]), follow_symlinks=False)


def remove_checkout(settings: Settings) -> None:
    """Remove .cluster/."""
    shutil.rmtree(settings.checkout, ignore_errors=True)


def hint(settings: Settings) -> str:
    """The command to type next."""
    return f"next: . {settings.checkout / 'env'}   (sets KUBECONFIG; puts kubectl and helm on PATH)"


def _authority(folder: Path, name: str) -> None:
    if (folder / f"{name}.crt").exists():
        return
    _key(folder / f"{name}.key")
    usage = "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"
    command = f"openssl req -x509 -new -sha256 -days {DAYS} -addext {usage}".split()
    command += ["-subj", f"/CN=trainyard {name}", "-key", f"{folder / name}.key"]
    run([*command, "-out", f"{folder / name}.crt"])


def _issue(folder: Path, certificate: Certificate) -> None:
    target = folder / f"{certificate.name}.crt"
    if target.exists():
        return
    key = folder / f"{certificate.name}.key"
    _key(key)
    subject = f"/CN={certificate.common_name}"
    if certificate.organization:
        subject = f"/O={certificate.organization}{subject}"
    extensions = "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
    if certificate.names:
        extensions += f"subjectAltName={','.join(certificate.names)}\n"
    request = run(["openssl", "req", "-new", "-sha256", "-subj", subject, "-key", key]).stdout
    with tempfile.NamedTemporaryFile("w", suffix=".ext", dir=folder) as extension_file:
        extension_file.write(extensions)
        extension_file.flush()
        authority = folder / certificate.authority
        command = f"openssl x509 -req -sha256 -days {DAYS} -CAcreateserial".split()
        command += ["-CA", f"{authority}.crt", "-CAkey", f"{authority}.key"]
        signed = run([*command, "-extfile", extension_file.name], text_in=request).stdout
    write_private(target, signed)


def _key(path: Path) -> None:
    made = run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
    write_private(path, made.stdout)
