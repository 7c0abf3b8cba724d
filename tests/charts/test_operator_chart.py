"""charts/operator: exact rights, the Lease, the environment, probes."""

import ast
from typing import Any

import pytest

from trainyard_api import __version__
from trainyard_operator.settings import Settings

from .conftest import CHARTS, Refusal, Render

PORT = Settings.model_fields["port"].default

RULES: set[tuple[str, str, str]] = {
    *(
        ("trainyard.dev", "trainingruns", verb)
        for verb in ("get", "list", "watch", "create", "delete")
    ),
    *(("trainyard.dev", "scalingstudies", verb) for verb in ("get", "list", "watch")),
    ("trainyard.dev", "trainingruns/status", "update"),
    ("trainyard.dev", "scalingstudies/status", "update"),
    *(("", "pods", verb) for verb in ("get", "list", "watch", "create", "delete")),
    ("", "pods/log", "get"),
    *(("", "services", verb) for verb in ("get", "create", "patch")),
    *(("", "persistentvolumeclaims", verb) for verb in ("get", "create", "update")),
    *(("", "events", verb) for verb in ("list", "create")),
    *(
        (group, "podgroups", verb)
        for group in ("scheduling.volcano.sh", "scheduling.x-k8s.io")
        for verb in ("get", "create", "patch")
    ),
}
NODES = ("", "nodes", "list")


def rules(role: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_rights_in_all_namespaces_are_exactly_these(render: Render) -> None:
    rendered = render("operator")
    role = rendered.one("ClusterRole", "operator")
    assert rules(role) == RULES | {NODES}
    binding = rendered.one("ClusterRoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = rendered.one("ServiceAccount")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "ml"}
    ]
    pod = rendered.one("Deployment")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]


def test_rights_in_one_namespace_stay_in_it(render: Render) -> None:
    rendered = render("operator", "watchNamespace=team", "rbac.aggregate=false")
    assert not rendered.all("ClusterRole")
    assert not rendered.all("ClusterRoleBinding")
    role = rendered.one("Role", "operator")
    assert role["metadata"]["namespace"] == "team"
    assert rules(role) == RULES
    binding = rendered.one("RoleBinding", "operator")
    assert binding["metadata"]["namespace"] == "team"
    assert binding["subjects"][0]["namespace"] == "ml"
    assert environment(rendered.one("Deployment"))["TRAINYARD_NAMESPACE"] == "team"


def test_only_its_own_lease_can_be_changed(render: Render) -> None:
    from trainyard_operator.app import LEASE

    role = render("operator").one("Role", "-lease")
    assert role["metadata"]["namespace"] == "ml"
    create, change = role["rules"]
    assert create["verbs"] == ["create"]
    assert change["verbs"] == ["get", "update"]
    assert change["resourceNames"] == [LEASE]


def test_every_object_the_code_touches_has_a_rule() -> None:
    """The plural of every API path in the operator's code is among the rules above."""
    code = CHARTS.parent / "operator" / "trainyard_operator"
    named = {resource.split("/")[0] for _, resource, _ in RULES | {NODES}} | {"leases"}
    used: set[str] = set()
    for file in code.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "path_of":
                used |= {str(arg.value) for arg in node.args[1:2] if isinstance(arg, ast.Constant)}
    assert used
    assert used <= named


def test_people_get_rights_through_the_usual_roles(render: Render) -> None:
    view = render("operator").one("ClusterRole", "-view")
    edit = render("operator").one("ClusterRole", "-edit")
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert {verb for _, _, verb in rules(view)} == {"get", "list", "watch"}
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    for kind in ("trainingruns", "scalingstudies"):
        assert ("trainyard.dev", kind, "create") in rules(edit)
        assert {("trainyard.dev", kind, "get"), ("trainyard.dev", f"{kind}/status", "get")} <= (
            rules(view)
        )
        assert f"{kind}/status" not in {resource for _, resource, _ in rules(edit)}
    assert not render("operator", "rbac.aggregate=false").all("ClusterRole", "-view")


def test_rbac_create_false_makes_no_rights(render: Render) -> None:
    rendered = render(
        "operator", "rbac.create=false", "serviceAccount.create=false", "serviceAccount.name=mine"
    )
    for kind in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount"):
        assert not rendered.all(kind)
    pod = rendered.one("Deployment")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "mine"


def test_an_account_to_use_must_be_named(refusal: Refusal) -> None:
    assert "serviceAccount.name: name the account" in refusal(
        "operator", "serviceAccount.create=false"
    )


def environment(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def test_the_environment_is_what_the_operator_reads(
    render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = ("trainerImage.repository=r/t", "trainerImage.tag=v9", "workers=3", "logFormat=text")
    given = environment(render("operator", *values).one("Deployment"))
    assert given.pop("POD_NAME") == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert given.pop("POD_NAMESPACE") == {"fieldRef": {"fieldPath": "metadata.namespace"}}
    assert given.keys() - {"HOME"} <= {field.alias for field in Settings.model_fields.values()}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.trainer_image == "r/t:v9"
    assert settings.agent_image == ""
    assert settings.workers == 3
    assert settings.log_format == "text"
    assert settings.namespace == ""


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ((), "trainyard/agent:APP"),
        (("trainerImage.repository=r:5000/t/trainer", "trainerImage.tag=v9"), "r:5000/t/agent:v9"),
        (("trainerImage.repository=r/mine", "trainerImage.tag=v9"), ""),
        (("trainerImage.repository=r/mine", "agentImage.repository=r/a"), "r/a:APP"),
        (("trainerImage.tag=v9", "agentImage.tag=v8"), "trainyard/agent:v8"),
        (("agentImage.enabled=false",), ""),
        (("agentImage=null",), "trainyard/agent:APP"),  # values that an older release kept
    ],
)
def test_the_agents_image_lies_beside_the_trainers(
    render: Render, values: tuple[str, ...], image: str
) -> None:
    found = environment(render("operator", *values).one("Deployment"))["TRAINYARD_AGENT_IMAGE"]
    assert found == image.replace("APP", __version__)


def test_the_port_is_the_operators_everywhere(render: Render) -> None:
    rendered = render("operator")
    (container,) = rendered.one("Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    service = rendered.one("Service")
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    template = rendered.one("Deployment")["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(PORT)
    for probe, path in (
        ("startupProbe", "/healthz"),
        ("livenessProbe", "/healthz"),
        ("readinessProbe", "/readyz"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}


@pytest.mark.parametrize(("replicas", "budgets"), [(1, 0), (2, 1)])
def test_a_disruption_budget_comes_with_replicas(
    render: Render, replicas: int, budgets: int
) -> None:
    found = render("operator", f"replicas={replicas}").all("PodDisruptionBudget")
    assert len(found) == budgets


def test_the_crds_are_in_the_chart_and_the_notes_explain_upgrading_them(render: Render) -> None:
    crds = {path.name for path in (CHARTS / "operator" / "crds").iterdir()}
    assert crds == {"trainingruns.trainyard.dev.yaml", "scalingstudies.trainyard.dev.yaml"}
    notes = (CHARTS / "operator" / "templates" / "NOTES.txt").read_text()
    command = "kubectl apply --server-side --force-conflicts --field-manager=helm"
    assert f"{command} -f charts/operator/crds/" in notes
