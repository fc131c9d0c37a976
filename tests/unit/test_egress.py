"""Allow-lists, judged addresses, and the requests of the HTTP proxy: all pure."""

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.core.addresses import judge, parse_host, parse_literal
from vsm.core.egress import (
    MOST_LISTENERS,
    MOST_TARGETS,
    Rules,
    Target,
    compile_rules,
    parse_target,
)
from vsm.core.proxy_request import parse_proxy_request
from vsm.egress.counts import MOST_NAMES, OTHERS, Counts
from vsm.processes.launcher import MOST_MESSAGE_BYTES

PUBLIC = ("1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "192.169.0.1", "100.128.0.1")
PUBLIC_6 = ("2606:2800:21f::1", "2a00:1450::1", "2001:4860:4860::8888")
NOT_PUBLIC = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "127.0.0.1", "127.255.255.255", "169.254.169.254"),
    *("172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.100.100.200"),
    *("192.0.0.192", "168.63.129.16", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
    *("::", "::1", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::8.8.8.8"),
    *("64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1", "fc00::1", "fd00:ec2::254"),
    *("fe80::1", "fec0::1", "ff02::1", "100::1", "3fff::1", "4000::1", "5f00::1", "fe80::1%lo"),
)
HIDDEN = (
    *("2130706433", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "127.1", "127.0.1", "1.2.3.4.5"),
    *("0", "0x", "00000000177.1", "a.b.0x7f", "1.1.1.1.", "256.256.256.256", "١٢٧.0.0.1"),
)


@pytest.mark.parametrize("address", [*PUBLIC, *PUBLIC_6])
def test_the_public_internet_may_be_connected_to(address: str) -> None:
    assert judge(address) == ""


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_is_not_the_public_internet_is_refused_with_a_reason(address: str) -> None:
    assert judge(address)


@given(st.ip_addresses())
def test_no_address_is_public_that_the_standard_library_calls_otherwise(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        assert judge(str(address))


@pytest.mark.parametrize("text", ["", "x", "1.1.1", "1.1.1.1/8", "01.1.1.1", "::1::1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    assert judge(text) == "no address"


@pytest.mark.parametrize("text", HIDDEN)
def test_an_address_in_another_spelling_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match=r"spelling|ASCII|no name"):
        parse_host(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "a..b", "-a.b", "a.b-", "a b", "a/b", "a\0b", "a@b", "*", "é.org", "a" * 254),
        *("localhost", "x.localhost", "[a]", "a:b", "fe80::1%lo", "a\r\nb", "[1.1.1.1]"),
    ],
)
def test_what_is_no_name_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match=r"host|ASCII|name|address|spelling"):
        parse_host(text)


def test_names_and_literals_have_one_canonical_form() -> None:
    assert parse_host("API.Example.COM.") == "api.example.com"
    assert parse_host("[2A00:1450:0:0::1]") == "2a00:1450::1"
    assert parse_literal("1.1.1.1") == "1.1.1.1"
    assert parse_literal("[::FFFF:127.0.0.1]") == str(ipaddress.ip_address("::ffff:127.0.0.1"))


@given(st.text(max_size=40))
def test_parsing_a_host_is_total_and_stable(text: str) -> None:
    try:
        host = parse_host(text)
    except ValueError:
        return
    assert parse_host(host) == host
    assert host.isascii()
    assert not set(host) & set(" /\\@#?%\0\r\n[]")


@given(st.text(max_size=40))
def test_parsing_a_target_is_total_and_reversible(text: str) -> None:
    try:
        target = parse_target(text)
    except ValueError:
        return
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("api.example.com", "no port"),
        ("api.example.com:", "no port"),
        ("api.example.com:0", "1 to 65535"),
        ("api.example.com:65536", "1 to 65535"),
        ("api.example.com:8o", "no port"),
        ("api.example.com:٤٤٣", "no port"),
        ("*.com:443", "two labels"),
        ("*:443", "no name"),
        ("a.*.com:443", "no name"),
        ("*.1.1.1.1:443", "wildcard"),
        ("::1:443", "brackets"),
        ("https://api.example.com:443", "no name"),
        ("localhost:80", "localhost"),
    ],
)
def test_a_wrong_target_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_target(text)


ALLOW = (
    *("api.example.com:443", "api.example.com:80", "other.example.com:8443"),
    *("*.wild.example.com:443", "127.0.0.1:9000", "10.0.0.5:9000", "[::1]:9000"),
)


def test_rules_tell_connections_apart_by_address_and_port() -> None:
    rules = compile_rules(ALLOW)
    api, other = rules.names
    assert rules.target(api, 443) == ("api.example.com", 443)
    assert rules.target(other, 8443) == ("other.example.com", 8443)
    assert rules.target(other, 443) is None
    assert rules.target(api, 8443) is None
    assert rules.target("127.0.0.1", 9000) == ("127.0.0.1", 9000)
    assert rules.target("127.0.0.1", 443) is None
    assert rules.target("127.77.9.9", 443) is None
    assert rules.literals == ("10.0.0.5",)  # what the loopback does not answer for by itself
    assert set(rules.listeners) == {
        *(("0.0.0.0", port) for port in (443, 80, 8443, 9000, 3128)),
        ("::", 9000),
    }
    assert Rules.from_json(json.loads(json.dumps(rules.to_json()))) == rules


def test_the_longest_allow_list_fits_the_message_that_serves_it() -> None:
    labels = ".".join(["x" * 63] * 3)
    rules = compile_rules(f"{labels}.y{number:060}:65535" for number in range(MOST_TARGETS))
    data = json.dumps(rules.to_json())
    assert len(data) < MOST_MESSAGE_BYTES - 1024
    assert Rules.from_json(json.loads(data)) == rules


def test_rules_allow_names_exactly_and_wildcards_below_their_domain() -> None:
    rules = compile_rules(ALLOW)
    assert rules.allows("api.example.com", 443)
    assert rules.allows("a.b.wild.example.com", 443)
    for host, port in [
        *(("wild.example.com", 443), ("evilwild.example.com", 443), ("a.wild.example.com", 80)),
        *(("example.com", 443), ("api.example.com.evil.com", 443), ("*.wild.example.com", 80)),
    ]:
        assert not rules.allows(host, port)


def test_only_the_very_address_that_was_written_is_excepted_from_judgement() -> None:
    rules = compile_rules(ALLOW)
    assert rules.refuses_address("127.0.0.1", 9000) == ""
    assert rules.refuses_address("127.0.0.1", 443)
    assert rules.refuses_address("127.0.0.2", 9000)
    assert rules.refuses_address("93.184.215.14", 443) == ""


def test_a_proxy_port_that_is_taken_is_not_taken_again() -> None:
    rules = compile_rules(("127.0.0.1:3128", "*.example.com:443"))
    assert rules.proxy_port == 3129
    assert rules.environment()["HTTPS_PROXY"] == "http://127.0.0.1:3129"
    assert compile_rules(("api.example.com:443",)).environment() == {}


def test_many_names_share_few_listeners_and_too_many_ports_are_refused() -> None:
    rules = compile_rules(f"host{n}.example.com:443" for n in range(256))
    assert len(set(rules.names)) == 256
    assert len(rules.listeners) == 1
    with pytest.raises(ValueError, match="ports"):
        compile_rules(f"example.com:{port}" for port in range(1, MOST_LISTENERS + 2))
    with pytest.raises(ValueError, match="at most 256"):
        compile_rules(f"host{n}.example.com:443" for n in range(257))


def test_a_literal_target_prints_as_it_is_written() -> None:
    assert str(Target("::1", 80)) == "[::1]:80"
    assert str(Target("example.com", 443, wildcard=True)) == "*.example.com:443"


# -- the HTTP proxy --------------------------------------------------------------------------------


def test_connect_is_a_tunnel() -> None:
    request = parse_proxy_request(b"CONNECT API.example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert request == ("api.example.com", 443, b"")
    assert request.tunnel


@pytest.mark.parametrize(
    "line", ["GET http://user:s3cret@a.example/", "CONNECT user:s3cret@a.example:443"]
)
def test_a_password_in_an_address_is_not_said_again(line: str) -> None:
    """The reason of a refusal goes into status, log and journal."""
    with pytest.raises(ValueError, match="user or password") as caught:
        parse_proxy_request(f"{line} HTTP/1.1\r\n\r\n".encode())
    assert "s3cret" not in str(caught.value)


def test_an_absolute_url_becomes_the_origin_servers_request() -> None:
    head = b"GET http://a.example.com/p?q=1#f HTTP/1.1\r\nHost: evil.com\r\nX: y\r\n"
    request = parse_proxy_request(head + b"Proxy-Connection: keep-alive\r\n\r\n")
    assert (request.host, request.port) == ("a.example.com", 80)
    assert request.head == (
        b"GET /p?q=1 HTTP/1.1\r\nHost: a.example.com\r\nX: y\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.parametrize(
    "target", ["http://a.org", "http://a.org/", "http://a.org?x", "http://a.org:81/y"]
)
def test_every_url_has_a_path(target: str) -> None:
    request = parse_proxy_request(f"GET {target} HTTP/1.1\r\n\r\n".encode())
    assert request.head.startswith(b"GET /")


@given(st.binary(max_size=80), st.sampled_from([b"CONNECT ", b"GET http://", b""]))
def test_no_bytes_make_the_proxy_fail_otherwise(noise: bytes, start: bytes) -> None:
    try:
        request = parse_proxy_request(start + noise + b" HTTP/1.1\r\n\r\n")
    except ValueError:
        return
    assert parse_host(request.host) == request.host
    assert request.head.count(b"\r\n\r\n") <= 1


# -- counts ----------------------------------------------------------------------------------------


def test_counts_are_bounded_whatever_a_worker_asks_for() -> None:
    counts = Counts()
    for number in range(3 * MOST_NAMES):
        counts.refused(f"{number}.example.com:443", "x" * 1000)
    assert len(counts.table) == MOST_NAMES + 1
    assert counts.table[OTHERS]["refused"] == 2 * MOST_NAMES
    assert len(json.dumps(counts.table)) < 65536
