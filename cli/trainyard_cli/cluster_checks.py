"""Checks of the cluster for `trainyard doctor`, by the user's kubectl: CRDs, operator, permissions.

`kubectl get --raw` is used because it needs no discovery: one request per question, authenticated
as every other kubectl command of this user. A cluster can't stop `trainyard run`, so its findings
are warnings at most.
"""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from trainyard_api import __version__
from trainyard_api.run import GROUP, PLURAL, VERSION
from trainyard_api.spec import TrainingRunSpec
from trainyard_api.study import STUDY_PLURAL, ScalingStudySpec
from trainyard_cli.machine_checks import Finding, error_text, run_program

SPECS: dict[str, type[BaseModel]] = {PLURAL: TrainingRunSpec, STUDY_PLURAL: ScalingStudySpec}
OPERATOR_LABEL = "app.kubernetes.io/name=trainyard-operator"
VERSION_LABEL = "app.kubernetes.io/version"
VERBS = ("create", "list", "patch", "delete")
INSTALL = (
    "helm install trainyard charts/operator --namespace trainyard-system --create-namespace"
    " (see README.md)"
)
APPLY_CRDS = "kubectl apply --server-side -f charts/operator/crds"


def check_cluster() -> list[Finding]:
    """kubectl, its context, and what Trainyard needs in that cluster."""
    if shutil.which("kubectl") is None:
        text = "not installed, so no cluster is checked; `trainyard run` doesn't need one"
        return [Finding("kubectl", "not checked", text)]
    try:
        client = json.loads(_kubectl("version", "--client", "--output=json"))["clientVersion"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        text = f"kubectl does not work: {_reason(error)}"
        return [Finding("kubectl", "not checked", text, "reinstall kubectl to use a cluster")]
    findings = [Finding("kubectl", "ok", f"kubectl {client['gitVersion']}")]
    try:
        config = json.loads(_kubectl("config", "view", "--minify", "--output=json"))
        context = config["current-context"]
        namespace = config["contexts"][0]["context"].get("namespace", "default")
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        text = "no context is selected, so no cluster is checked"
        action = "to use a cluster: set KUBECONFIG, or kubectl config use-context NAME"
        return [*findings, Finding("cluster", "not checked", text, action)]
    try:
        server = _get("/version")
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        text = f"context {context}: the API server can't be reached: {_reason(error)}"
        action = "check the network and the credentials: kubectl cluster-info"
        return [*findings, Finding("cluster", "warning", text, action)]
    findings.append(_check_versions(context, client, server))
    with ThreadPoolExecutor() as executor:
        results = [executor.submit(_check_crd, plural) for plural in SPECS]
        results += [executor.submit(_check_operator)]
        results += [executor.submit(_check_permissions, namespace)]
        return [*findings, *(result.result() for result in results)]


def _check_versions(context: str, client: dict[str, Any], server: dict[str, Any]) -> Finding:
    text = f"context {context}: Kubernetes {server.get('gitVersion', 'of unknown version')}"
    if abs(_minor(client) - _minor(server)) > 1:
        text += f", kubectl {client['gitVersion']}"
        action = "use a kubectl whose minor version differs from the server's by one at most"
        return Finding("cluster", "warning", text, action)
    return Finding("cluster", "ok", text)


def _check_crd(plural: str) -> Finding:
    """Whether the CRD is installed, and has every field of the spec that this version knows."""
    name = f"{plural}.{GROUP}"
    try:
        crd = _get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        version = next(v for v in crd["spec"]["versions"] if v["name"] == VERSION and v["served"])
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    except StopIteration:
        return Finding("crd", "warning", f"{name} does not serve {VERSION}", APPLY_CRDS)
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        if "NotFound" in _reason(error):
            return Finding("crd", "warning", f"{name} is not installed", INSTALL)
        return Finding("crd", "not checked", f"{name}: {_reason(error)}")
    fields = SPECS[plural].model_fields
    expected = {str(field.alias or key) for key, field in fields.items()}
    if missing := sorted(expected - spec.keys()):
        text = f"{name} is of an older version: it lacks spec.{', spec.'.join(missing)}"
        return Finding("crd", "warning", text, APPLY_CRDS)
    if unknown := sorted(spec.keys() - expected):
        text = f"{name} is of a newer version: it has spec.{', spec.'.join(unknown)}"
        return Finding("crd", "warning", text, "upgrade trainyard on this machine")
    return Finding("crd", "ok", f"{name} {VERSION}")


def _check_operator() -> Finding:
    try:
        items = _get(f"/apis/apps/v1/deployments?labelSelector={quote(OPERATOR_LABEL)}")["items"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        return Finding("operator", "not checked", _reason(error))
    if not items:
        return Finding("operator", "warning", "no operator is installed", INSTALL)
    metadata = items[0]["metadata"]
    name = f"{metadata['namespace']}/{metadata['name']}"
    if not items[0].get("status", {}).get("readyReplicas"):
        action = f"kubectl --namespace {metadata['namespace']} describe pods -l {OPERATOR_LABEL}"
        return Finding("operator", "warning", f"Deployment {name} is not ready", action)
    version = metadata.get("labels", {}).get(VERSION_LABEL, "")
    if version != __version__:
        text = f"Deployment {name} is of version {version}, this is trainyard {__version__}"
        return Finding("operator", "warning", text, "use the same version of both")
    return Finding("operator", "ok", f"Deployment {name} is ready, version {version}")


def _check_permissions(namespace: str) -> Finding:
    """What the user may do with TrainingRuns in the context's namespace."""
    try:
        with ThreadPoolExecutor() as executor:
            allowed = executor.map(lambda verb: _is_allowed(verb, namespace), VERBS)
            denied = [verb for verb, may in zip(VERBS, allowed, strict=True) if not may]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        return Finding("rbac", "not checked", _reason(error))
    if denied:
        text = f"you may not {', '.join(denied)} {PLURAL} in namespace {namespace}"
        action = "ask for the ClusterRole edit in this namespace (the operator's chart extends it)"
        return Finding("rbac", "warning", text, action)
    return Finding("rbac", "ok", f"you may {', '.join(VERBS)} {PLURAL} in namespace {namespace}")


def _is_allowed(verb: str, namespace: str) -> bool:
    attributes = {"namespace": namespace, "verb": verb, "group": GROUP, "resource": PLURAL}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    answer = json.loads(_kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(review)))
    return bool(answer["status"]["allowed"])


def _get(path: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(_kubectl("get", "--raw", path))
    return answer


def _kubectl(*arguments: str, stdin: str = "") -> str:
    return run_program(["kubectl", "--request-timeout=4s", *arguments], stdin)


def _minor(version: dict[str, Any]) -> int:
    """The minor version; managed clusters report it as `32+`."""
    digits = "".join(character for character in str(version.get("minor")) if character.isdigit())
    return int(digits or 0)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError | subprocess.SubprocessError):
        return error_text(error)
    return f"unexpected answer: {error!r}"
