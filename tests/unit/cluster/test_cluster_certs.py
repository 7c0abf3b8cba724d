"""Certificates verify against their own authority, name their addresses, and are made once."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from dev.cluster import access
from dev.cluster.settings import HOST_IP, NODES, Settings

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(state=tmp_path_factory.mktemp("state"))
    access.create_certificates(settings)
    return settings


def verifies(authority: Path, certificate: Path) -> bool:
    command = ["openssl", "verify", "-CAfile", str(authority), str(certificate)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def text(certificate: Path) -> str:
    command = ["openssl", "x509", "-noout", "-text", "-in", str(certificate)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_user_is_signed_by_the_cluster_and_not_by_etcd(made: Settings) -> None:
    for user in access.USERS:
        assert verifies(made.pki / "ca.crt", made.pki / f"{user.name}.crt"), user
        assert not verifies(made.pki / "etcd-ca.crt", made.pki / f"{user.name}.crt"), user


def test_servers_name_the_addresses_they_answer_on(made: Settings) -> None:
    assert f"IP Address:{HOST_IP}" in text(made.pki / "apiserver.crt")
    for node in NODES:
        assert f"IP Address:{node.ip}" in text(made.pki / f"{node.name}-serving.crt")


def test_node_certificates_carry_the_names_the_node_authorizer_needs(made: Settings) -> None:
    said = text(made.pki / "node1.crt")
    assert "O = system:nodes" in said
    assert "CN = system:node:node1" in said


def test_keys_and_kubeconfigs_are_private(made: Settings) -> None:
    private = [*made.pki.glob("*.key"), *(made.state / "kubeconfig").iterdir()]
    assert private
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_kubeconfig_carries_its_own_certificate(made: Settings) -> None:
    config = json.loads(made.user_config("scheduler").read_text())
    data = config["users"][0]["user"]["client-certificate-data"]
    assert base64.b64decode(data) == (made.pki / "scheduler.crt").read_bytes()


def test_a_second_run_changes_nothing(made: Settings) -> None:
    before = {path: path.read_bytes() for path in made.state.rglob("*") if path.is_file()}
    access.create_certificates(made)
    assert before == {path: path.read_bytes() for path in made.state.rglob("*") if path.is_file()}
