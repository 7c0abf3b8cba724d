"""charts/serving: who may reach the pod, and what the pod may reach."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from trainyard_serving.vision.addresses import (
    _NOT_PUBLIC_IPV4,
    _NOT_PUBLIC_IPV6,
    why_not_public,
)

from .conftest import Render, Rendered
from .serving_values import (
    CLASSIFY,
    EMBED,
    GENERATE,
    HUB,
    KEY,
    ONNX,
    S3,
    SGLANG,
    SHAPES,
    VISION,
    VISION_CLAIM,
)

# No address that a client chooses may be requested there; the names say why.
NOT_THE_INTERNET = {
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fdff::1"],
    "the-clusters-own": ["10.96.0.1", "10.244.1.7"],
    "link-local": ["169.254.0.1", "fe80::1"],
    "metadata": ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200"],
    "carrier-grade-nat": ["100.64.0.1", "100.127.255.255"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "192.0.0.1", "198.18.0.1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "ipv4-mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1"],
    "nat64": ["64:ff9b::7f00:1", "64:ff9b:1::a00:1"],
    "6to4": ["2002:7f00:1::", "2002:a00:1::", "192.88.99.1"],
    "teredo": ["2001::1", "2001:0:7f00:1::"],
}
INTERNET = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111"]


def egress(rendered: Rendered) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = rendered.one("NetworkPolicy")["spec"]["egress"]
    return rules


def ports(rule: dict[str, Any]) -> set[tuple[str, int]]:
    return {(port["protocol"], port["port"]) for port in rule["ports"]}


def reaches(rule: dict[str, Any], address: IPv4Address | IPv6Address) -> bool:
    return any(
        address in ip_network(peer["ipBlock"]["cidr"])
        and not any(address in ip_network(block) for block in peer["ipBlock"]["except"])
        for peer in rule["to"]
        if "ipBlock" in peer
    )


DNS = {("UDP", 53), ("TCP", 53)}


@pytest.mark.parametrize("values", [GENERATE, CLASSIFY, ONNX, EMBED, SGLANG], ids=" ".join)
def test_a_model_on_a_volume_needs_nothing_outside(render: Render, values: tuple[str, ...]) -> None:
    policy = render("serving", *values).one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []


@pytest.mark.parametrize("why", sorted(NOT_THE_INTERNET))
@pytest.mark.parametrize("values", [VISION, VISION_CLAIM, HUB], ids=["vision", "claim", "hub"])
def test_no_private_address_can_be_reached(
    render: Render, values: tuple[str, ...], why: str
) -> None:
    dns, internet = egress(render("serving", *values))
    assert ports(dns) == DNS
    for text in NOT_THE_INTERNET[why]:
        assert not reaches(internet, ip_address(text)), text


def test_the_policy_is_as_strict_as_pythons_registry_of_addresses(render: Render) -> None:
    """The first and the last address of every block that IANA set aside, as Python knows them."""
    _, internet = egress(render("serving", *VISION))
    blocks = [ip_network(f"{first}.0.0.0/8") for first in range(256)]
    for block in blocks:
        for address in (block[0], block[1], block[2**16], block[-2], block[-1]):
            assert address.is_global or not reaches(internet, address), str(address)


def test_the_policy_and_the_gateway_agree_on_what_is_public(render: Render) -> None:
    """At both ends of every block that one of the two leaves out."""
    _, internet = egress(render("serving", *VISION))
    blocks = [block for peer in internet["to"] for block in peer["ipBlock"]["except"]]
    blocks += [str(network) for network, _ in (*_NOT_PUBLIC_IPV4, *_NOT_PUBLIC_IPV6)]
    for block in map(ip_network, blocks):
        edges = {int(block[0]) - 1, int(block[0]), int(block[-1]), int(block[-1]) + 1}
        family = IPv4Address if block.version == 4 else IPv6Address
        for edge in filter(range(2**block.max_prefixlen).__contains__, edges):
            address = family(edge)
            assert reaches(internet, address) == (why_not_public(address) is None), str(address)


@pytest.mark.parametrize("address", INTERNET)
def test_vision_reaches_the_internet(render: Render, address: str) -> None:
    _, internet = egress(render("serving", *VISION))
    assert ports(internet) == {("TCP", 80), ("TCP", 443)}
    assert reaches(internet, ip_address(address))


def test_the_ports_of_pictures_are_the_programs(render: Render) -> None:
    """443 stays open for the Hub, but not where the model is on a claim."""
    allowed = 'settings.allowedPorts:="8080"'
    _, internet = egress(render("serving", *VISION, allowed))
    assert ports(internet) == {("TCP", 8080), ("TCP", 443)}
    _, internet = egress(render("serving", *VISION_CLAIM, allowed))
    assert ports(internet) == {("TCP", 8080)}


def test_a_hub_id_opens_port_443_only(render: Render) -> None:
    _, internet = egress(render("serving", *HUB))
    assert ports(internet) == {("TCP", 443)}


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://minio.storage:9000", 9000),
        ("http://minio.storage", 80),
        ("https://s3.example.org", 443),
        ("https://s3.example.org:8443/", 8443),
        ("", 443),
    ],
)
def test_a_bucket_opens_its_endpoints_port(render: Render, endpoint: str, port: int) -> None:
    dns, bucket = egress(
        render("serving", "run=a", "runDirectory=s3://b/a", f"s3.endpoint={endpoint}")
    )
    assert ports(dns) == DNS
    assert ports(bucket) == {("TCP", port)}
    assert not reaches(bucket, ip_address("169.254.169.254"))
    assert not reaches(bucket, ip_address("fe80::1"))


def test_peers_narrow_dns_and_the_bucket(render: Render) -> None:
    dns, bucket, extra = egress(render("serving", *SHAPES["peers"]))
    assert dns["to"] == [{"ipBlock": {"cidr": "169.254.20.10/32"}}]
    assert bucket["to"] == [{"podSelector": {"matchLabels": {"app": "minio"}}}]
    assert extra == {"ports": [{"port": 4317}]}


def test_only_the_servers_port_can_be_reached(render: Render) -> None:
    (rule,) = render("serving", *SGLANG).one("NetworkPolicy")["spec"]["ingress"]
    assert rule == {"ports": [{"protocol": "TCP", "port": "http"}]}


def test_named_peers_leave_a_way_for_helm_test(render: Render) -> None:
    rendered = render("serving", *SHAPES["peers"])
    (rule,) = rendered.one("NetworkPolicy")["spec"]["ingress"]
    test, peer = rule["from"]
    assert peer == {"namespaceSelector": {}}
    labels = rendered.one("Pod")["metadata"]["labels"]
    assert test["podSelector"]["matchLabels"].items() <= labels.items()


def test_the_policy_is_about_our_pods_and_can_be_left_out(render: Render) -> None:
    rendered = render("serving", *GENERATE)
    selected = rendered.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    deployment = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert selected.items() <= deployment.items()
    assert not selected.items() <= rendered.one("Pod")["metadata"]["labels"].items()
    assert not render("serving", *GENERATE, "networkPolicy.enabled=false").all("NetworkPolicy")


def test_ingress_leads_to_the_service(render: Render) -> None:
    rendered = render("serving", *SHAPES["protected"])
    spec = rendered.one("Ingress")["spec"]
    assert spec["ingressClassName"] == "nginx"
    assert spec["tls"] == [{"hosts": ["shakespeare.example.org"], "secretName": "tls"}]
    (rule,) = spec["rules"]
    service = rule["http"]["paths"][0]["backend"]["service"]
    assert service["name"] == rendered.one("Service")["metadata"]["name"]
    assert service["port"]["name"] in [p["name"] for p in rendered.one("Service")["spec"]["ports"]]


def test_the_key_is_kept_in_a_secret_only(render: Render) -> None:
    rendered = render("serving", *GENERATE, *KEY)
    secret = rendered.one("Secret")
    assert secret["stringData"] == {"api-key": "correct-horse-battery"}
    rest = [item for item in rendered.manifests if item["kind"] != "Secret"]
    assert "correct-horse-battery" not in str(rest)
    for container in (rendered.container("serving"), rendered.one("Pod")["spec"]["containers"][0]):
        (item,) = [item for item in container["env"] if item["name"].endswith("API_KEY")]
        reference = item["valueFrom"]["secretKeyRef"]
        assert reference == {"name": secret["metadata"]["name"], "key": "api-key"}


def test_an_existing_secret_is_used_unchanged(render: Render) -> None:
    values = ("apiKey.existingSecret=mine", "apiKey.secretKey=token")
    rendered = render("serving", *GENERATE, *values)
    assert not rendered.all("Secret")
    assert next(
        item["valueFrom"]["secretKeyRef"]
        for item in rendered.container("serving")["env"]
        if item["name"] == "TRAINYARD_SERVING_API_KEY"
    ) == {"name": "mine", "key": "token"}


def test_a_new_key_makes_new_pods(render: Render) -> None:
    def annotations(key: str) -> Any:
        deployment = render("serving", *GENERATE, f"apiKey.value={key}").one("Deployment")
        return deployment["spec"]["template"]["metadata"]["annotations"]

    assert annotations("a" * 16) != annotations("b" * 16)


def test_without_a_key_no_manifest_mentions_one(render: Render) -> None:
    rendered = render("serving", *S3)
    assert "API_KEY" not in str(rendered.pod())
    assert not rendered.all("Secret")


def test_the_key_of_administrators_travels_as_the_clients_does(render: Render) -> None:
    admin = ("adminApiKey.value=battery-staple-horse",)
    for values, data in (
        (admin, {"admin-api-key": "battery-staple-horse"}),
        (
            (*KEY, *admin),
            {"api-key": "correct-horse-battery", "admin-api-key": "battery-staple-horse"},
        ),
    ):
        rendered = render("serving", *GENERATE, *values)
        secret = rendered.one("Secret")
        assert secret["stringData"] == data
        rest = [item for item in rendered.manifests if item["kind"] != "Secret"]
        assert "battery-staple-horse" not in str(rest)
        assert reference(rendered) == {"name": secret["metadata"]["name"], "key": "admin-api-key"}
        assert "admin-api-key" not in str(rendered.one("Pod")), "helm test needs none"
    theirs = ("adminApiKey.existingSecret=mine", "adminApiKey.secretKey=root")
    assert reference(render("serving", *GENERATE, *theirs)) == {"name": "mine", "key": "root"}


def reference(rendered: Rendered) -> Any:
    """Where the server's container has the key of administrators from."""
    environment = rendered.container("serving")["env"]
    (item,) = [item for item in environment if item["name"] == "TRAINYARD_SERVING_ADMIN_API_KEY"]
    return item["valueFrom"]["secretKeyRef"]


def test_a_new_key_of_administrators_makes_new_pods(render: Render) -> None:
    def annotations(key: str) -> Any:
        deployment = render("serving", *GENERATE, f"adminApiKey.value={key}").one("Deployment")
        return deployment["spec"]["template"]["metadata"]["annotations"]

    assert annotations("a" * 16) != annotations("b" * 16)


def test_the_ingress_has_the_path_prefix(render: Render) -> None:
    def path(*values: str) -> Any:
        (rule,) = render("serving", *SHAPES["protected"], *values).one("Ingress")["spec"]["rules"]
        return rule["http"]["paths"][0]["path"]

    assert (path(), path("settings.pathPrefix=/shakespeare")) == ("/", "/shakespeare")
