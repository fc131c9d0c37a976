"""Network mode `proxy`: workers reach exactly the hosts that their profile names.

In an internet of the test's own (internet.py): names, public addresses and every kind of private
one are really there, and a control run reaches them all. What the servers saw is what counts.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.isolation

HERE = Path(__file__).parent
PUBLIC, OTHER, SIX = "93.184.215.14", "104.18.1.1", "2606:2800:21f::1"
NAMES = {
    "api.example.com": [[PUBLIC]],
    "second.example.com": [[PUBLIC]],
    "other.example.com": [[OTHER]],
    "wild.example.com": [[OTHER]],
    "deep.wild.example.com": [[PUBLIC]],
    "evilwild.example.com": [[OTHER]],
    "api.example.com.evil.com": [[OTHER]],
    "metadata.wild.example.com": [["169.254.169.254"]],
    "loopback.wild.example.com": [["127.0.0.1"]],
    "odd-loopback.wild.example.com": [["127.9.9.9"]],
    "unspecified.wild.example.com": [["0.0.0.0"]],
    "private.wild.example.com": [["10.0.0.5"]],
    "carrier.wild.example.com": [["100.100.100.200"]],
    "wireserver.wild.example.com": [["168.63.129.16"]],
    "loopback6.wild.example.com": [["::1"]],
    "mapped.wild.example.com": [["::ffff:127.0.0.1"]],
    "unique-local.wild.example.com": [["fd00:ec2::254"]],
    "nat64.wild.example.com": [["64:ff9b::7f00:1"]],
    "six-to-four.wild.example.com": [["2002:7f00:1::"]],
    "six.wild.example.com": [[SIX]],
    "mixed.wild.example.com": [["127.0.0.1", "10.0.0.5", PUBLIC]],
    "rebound.example.com": [[PUBLIC], ["127.0.0.1"]],
    "trusted.example.com": [["10.0.0.5"]],
}
REFUSED_ADDRESSES = [
    name
    for name, answers in NAMES.items()
    if name.endswith(".wild.example.com") and answers[0][0] not in (PUBLIC, SIX)
    if "mixed" not in name
]
SPELLINGS = [
    *("127.0.0.1:80", "2130706433:80", "0177.0.0.1:80", "0x7f.0.0.1:80", "0x7f000001:80"),
    *("127.1:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "[::ffff:7f00:1]:80", "localhost:80"),
    *("169.254.169.254:80", "2852039166:80", "0xa9fea9fe:80", "0251.0376.0251.0376:80"),
    *("0.0.0.0:80", "0:80", "[::]:80", f"{OTHER}:80", f"{PUBLIC}:80", "127.77.0.1:80"),
]
NAMED = [
    *("other.example.com:80", "wild.example.com:80", "evilwild.example.com:80"),
    *("api.example.com.evil.com:80", "api.example.com:22", "deep.wild.example.com:8080"),
    *("deep.wild.example.com", "deep.wild.example.com:", "deep.wild.example.com:80:80"),
    *("user@deep.wild.example.com:80", "deep.wild.example.com%00.evil.com:80"),
    ".wild.example.com:80",
]
ALLOW = (
    *("api.example.com:80", "api.example.com:443", "second.example.com:8080"),
    *("*.wild.example.com:80", "rebound.example.com:80"),
)


@dataclass
class Internet:
    """Runs commands in a fresh internet, as the arena's user."""

    arena: Any
    folder: Path
    said: list[str] = field(default_factory=list)  # on stderr, by the last attempts

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Unconfined, in the internet."""
        (self.folder / "log").unlink(missing_ok=True)
        (self.folder / "log").touch(mode=0o666)
        (self.folder / "log").chmod(0o666)
        spec = {
            "names": NAMES,
            "log": str(self.folder / "log"),
            "root": str(self.folder),
            "certificate": str(self.folder / "pem"),
        }
        script = str(self.arena.folder / "copy" / "internet.py")
        identity = self.arena.identity()
        path = [identity["env"].get("PYTHONPATH", str(Path(__file__).parents[2]))]
        identity["env"] = {**identity["env"], "PYTHONPATH": ":".join(path)}
        return subprocess.run(
            [self.arena.python, script, json.dumps(spec), *argv],
            **identity,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def confined(self, allow: tuple[str, ...], *argv: str) -> subprocess.CompletedProcess[str]:
        """In a worker with an allow-list."""
        options = [word for entry in allow for word in ("--allow", entry)]
        profile = str(self.arena.folder / "profiles" / "open.toml")
        run = [self.arena.python, "-m", "vsm", "sandbox", "run", "-v", "--profile", profile]
        return self.run(*run, *options, "--read", str(self.folder), "--", *argv)

    def attempts(self, tries: list[list[Any]], allow: tuple[str, ...] | None) -> dict[str, str]:
        """Run egress_client.py; None is unconfined."""
        words = ["/usr/bin/python3", str(self.folder / "egress_client.py"), *map(json.dumps, tries)]
        done = self.run(*words) if allow is None else self.confined(allow, *words)
        self.said = done.stderr.splitlines()
        assert done.returncode == 0, done.stderr[-3000:]
        answer: dict[str, str] = json.loads(done.stdout)
        return answer

    def seen(self) -> list[dict[str, Any]]:
        """What the servers saw in the last run."""
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    def reached(self) -> set[str]:
        """The addresses at which somebody was reached."""
        return {line["reached"] for line in self.seen() if "reached" in line}


@pytest.fixture(scope="module")
def internet(arena: Any) -> Internet:
    arena.need("namespaced")
    tools = [name for name in ("openssl", "curl", "git") if shutil.which(name) is None]
    arena.require("clients to test with", not tools, f"not installed: {', '.join(tools)}")
    folder = arena.folder / "internet"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    for name in ("internet.py", "egress_client.py"):
        for target in (arena.folder / "copy", folder):
            shutil.copy(HERE / name, target / name)
    (arena.folder / "profiles" / "open.toml").write_text(
        'extends = "networked"\nmay_lack = ["user"]\n[limits]\ncpu = "unlimited"\nmemory = "1G"\n'
        "processes = 200\nopen_files = 512\n"
    )
    _make_certificate(folder)
    made = Internet(arena, folder)
    works = made.run("/bin/true")
    arena.require("a network namespace to test in", works.returncode == 0, works.stderr[-500:])
    return made


def _make_certificate(folder: Path) -> None:
    names = "subjectAltName=DNS:api.example.com,DNS:*.wild.example.com"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=test"),
            *("-addext", names, "-keyout", "key", "-out", "authority.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    key, certificate = (folder / "key").read_text(), (folder / "authority.pem").read_text()
    (folder / "pem").write_text(key + certificate)
    (folder / "pem").chmod(0o644)


# -- the controls ----------------------------------------------------------------------------------


def test_everything_that_is_refused_below_can_be_reached_unconfined(internet: Internet) -> None:
    names = [*REFUSED_ADDRESSES, "other.example.com", "mixed.wild.example.com"]
    tries = [[name, "tcp", name, 80] for name in names]
    literals = ("169.254.169.254", OTHER, "2130706433", "0177.0.0.1", "0x7f.0.0.1", "127.1", "::1")
    tries += [[address, "tcp", address, 80] for address in literals]
    tries += [["name server", "ask", "127.0.0.1"]]
    answers = internet.attempts(tries, None)
    failed = {label: answer for label, answer in answers.items() if "rror" in answer}
    assert failed == {}
    assert {"169.254.169.254", "10.0.0.5", "127.0.0.1", "::1", OTHER} <= internet.reached()


# -- what is allowed -------------------------------------------------------------------------------


def test_unmodified_clients_reach_exactly_the_allowed_host(internet: Internet) -> None:
    repository = _make_repository(internet.folder)
    authority = internet.folder / "authority.pem"
    script = f"""
    cd /tmp
    curl -sS http://api.example.com/; echo
    curl -sS --cacert {authority} https://api.example.com/; echo
    git clone -q http://api.example.com/files/{repository} cloned && cat cloned/file.txt
    python3 -c "
import ssl, urllib.request
context = ssl.create_default_context(cafile='{authority}')
print(urllib.request.urlopen('https://api.example.com/', context=context).read().decode())"
    if test -x /usr/bin/node; then NODE_EXTRA_CA_CERTS={authority} node -e "
fetch('https://api.example.com/').then(r => r.text()).then(t => console.log('node ' + t))"; fi
    curl -sS -m 10 http://other.example.com/ && echo REACHED
    curl -sS -m 10 http://{OTHER}/ && echo REACHED
    true
    """
    allow = ("api.example.com:80", "api.example.com:443")
    done = internet.confined(allow, "/bin/sh", "-c", script)
    answer = f"{PUBLIC} api.example.com"
    expected = [answer, answer, "cloned content", answer]
    lines = done.stdout.splitlines()
    assert lines[:4] == expected, (done.stdout, done.stderr[-2000:])
    assert lines[4:] == ([f"node {answer}"] if shutil.which("node", path="/usr/bin") else [])
    assert internet.reached() == {PUBLIC}
    assert "egress: api.example.com:443: " in done.stderr


def test_wildcards_are_reached_by_proxy_variables(internet: Internet) -> None:
    allow = ("*.wild.example.com:80", "*.wild.example.com:443")
    authority = internet.folder / "authority.pem"
    script = f"""
    curl -sS http://deep.wild.example.com/; echo
    curl -sS --cacert {authority} https://deep.wild.example.com/; echo
    curl -sS -o /dev/null -w '%{{http_code}}' http://other.example.com/; echo
    curl -sS -o /dev/null https://other.example.com/ || echo refused
    """
    done = internet.confined(allow, "/bin/sh", "-c", script)
    answer = f"{PUBLIC} deep.wild.example.com"
    assert done.stdout.splitlines() == [answer, answer, "403", "refused"], done.stderr[-2000:]
    assert internet.reached() == {PUBLIC}


def test_an_address_that_the_operator_wrote_is_reached_and_no_other(internet: Internet) -> None:
    allow = ("10.0.0.5:80", "trusted.example.com:80", "[::1]:8080")
    tries = [
        ["literal", "tcp", "10.0.0.5", 80],
        ["name of it", "tcp", "trusted.example.com", 80],
        ["six", "tcp", "::1", 8080],
        ["neighbour", "tcp", "10.0.0.6", 80],
        ["other port", "tcp", "10.0.0.5", 8080],
        ["loopback", "tcp", "127.0.0.1", 80],
    ]
    answers = internet.attempts(tries, allow)
    assert answers["literal"].startswith("10.0.0.5 ")
    assert answers["name of it"].startswith("10.0.0.5 ")
    assert answers["six"].startswith("::1 ")
    assert all("rror" in answers[name] for name in ("neighbour", "other port", "loopback"))
    assert internet.reached() == {"10.0.0.5", "::1"}


# -- attacks: one run of them all ------------------------------------------------------------------

MUCH = 8_000_000
HOSTS = (
    *("other.example.com", OTHER, "169.254.169.254", "10.0.0.5", "127.0.0.1", "localhost"),
    *("2130706433", "0177.0.0.1", "::ffff:127.0.0.1", "::1", "127.77.0.9", "127.77.0.0"),
)
MALFORMED = {
    "no version": "CONNECT deep.wild.example.com:80\r\n\r\n",
    "relative": "GET / HTTP/1.1\r\nHost: deep.wild.example.com\r\n\r\n",
    "https": "GET https://deep.wild.example.com/ HTTP/1.1\r\n\r\n",
    "file": "GET file:///etc/passwd HTTP/1.1\r\n\r\n",
    "bare newline": "GET http://deep.wild.example.com/ HTTP/1.1\nHost: a\r\n\r\n",
    "folded": "GET http://deep.wild.example.com/ HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
    "nul": "CONNECT deep.wild.example.com:80\0.evil.com HTTP/1.1\r\n\r\n",
}
PIPELINED = (
    "GET http://deep.wild.example.com/ HTTP/1.1\r\nHost: other.example.com\r\n\r\n"
    "GET http://other.example.com/ HTTP/1.1\r\nHost: other.example.com\r\n\r\n"
)
ASKED = [*SPELLINGS, *NAMED, *(f"{name}:80" for name in REFUSED_ADDRESSES)]
# These mean port 80 in a URL.
IN_URLS = [a for a in ASKED if a not in ("deep.wild.example.com", "deep.wild.example.com:")]
ATTACKS: dict[str, list[list[Any]]] = {
    "direct": [
        *([f"{host}:{port}", "tcp", host, port] for host in HOSTS for port in (80, 443)),
        ["port that is open inside for another name", "tcp", "api.example.com", 8080],
        ["the other way round", "tcp", "second.example.com", 80],
    ],
    "CONNECT": [[a, "connect", a] for a in ASKED],
    "URL": [[a, "raw", f"GET http://{a}/ HTTP/1.1\r\nHost: x\r\n\r\n"] for a in IN_URLS],
    "malformed": [[label, "raw", text] for label, text in MALFORMED.items()],
    "mixed": [
        ["mixed", "connect", "mixed.wild.example.com:80"],
        ["six", "connect", "six.wild.example.com:80"],
    ],
    "rebound": [[f"turn {n}", "tcp", "rebound.example.com", 80] for n in range(3)],
    "header": [
        ["host", "tcp", "api.example.com", 80, "other.example.com"],
        ["pipelined", "raw", PIPELINED],
    ],
    "names": [
        *([server, "ask", server] for server in ("127.0.0.1", "8.8.8.8", "127.77.0.1")),
        ["exfiltrate", "resolve", "secret.evil.com"],
        ["unknown", "resolve", "other.example.com"],
    ],
    "control": [
        ["second", "tcp", "second.example.com", 8080],
        ["CONNECT", "connect", "deep.wild.example.com:80"],
        ["name", "resolve", "api.example.com"],
        ["much", "post", "http://second.example.com:8080/", MUCH],
    ],
    "many": [["many", "many", "api.example.com", 80, 70]],
}
Answers = dict[str, dict[str, str]]
Attacked = tuple[Answers, list[dict[str, Any]], dict[str, str]]


@pytest.fixture(scope="module")
def attacked(internet: Internet) -> Attacked:
    """Every attack's answer by group, what the servers saw meanwhile, and what was counted."""
    tries = [
        [f"{group}|{label}", *rest] for group, rows in ATTACKS.items() for label, *rest in rows
    ]
    answers: Answers = {group: {} for group in ATTACKS}
    for key, text in internet.attempts(tries, ALLOW).items():
        group, _, label = key.partition("|")
        answers[group][label] = text
    rows = [line.split(": ", 3)[2:] for line in internet.said if line.startswith("vsm: egress: ")]
    return answers, internet.seen(), dict(rows)


@pytest.fixture
def answers(attacked: Attacked) -> Answers:
    return attacked[0]


@pytest.fixture
def seen(attacked: Attacked) -> list[dict[str, Any]]:
    return attacked[1]


@pytest.fixture
def counted(attacked: Attacked) -> dict[str, str]:
    return attacked[2]


def test_nothing_but_the_allowed_addresses_was_reached_by_any_attack(
    answers: Answers, seen: list[dict[str, Any]]
) -> None:
    assert {line["reached"] for line in seen if "reached" in line} == {PUBLIC, SIX}
    assert answers["control"] == {
        "second": f"{PUBLIC} second.example.com",
        "CONNECT": f"{PUBLIC} inner",
        "name": "['127.77.0.1']",
        "much": str(MUCH),
    }


def test_other_hosts_addresses_and_ports_are_out_of_reach(
    answers: Answers, seen: list[dict[str, Any]]
) -> None:
    assert {label for label, text in answers["direct"].items() if "rror" not in text} == set()
    assert [line["port"] for line in seen if line.get("port") == 8080] == [8080, 8080]  # controls


@pytest.mark.parametrize(("group", "asked"), [("CONNECT", ASKED), ("URL", IN_URLS)])
def test_the_proxy_refuses_spellings_names_and_addresses(
    answers: Answers, group: str, asked: list[str]
) -> None:
    assert set(answers[group]) == set(asked)
    refused = ("HTTP/1.1 400", "HTTP/1.1 403")
    assert {a: t for a, t in answers[group].items() if not t.startswith(refused)} == {}


def test_malformed_requests_to_the_proxy_are_refused(answers: Answers) -> None:
    assert set(answers["malformed"].values()) == {"HTTP/1.1 400 Bad Request"}


def test_a_mixed_answer_gives_only_what_is_public(answers: Answers) -> None:
    assert answers["mixed"]["mixed"].startswith(PUBLIC)
    assert answers["mixed"]["six"].startswith(SIX)


def test_rebinding_between_connections_and_between_check_and_connect_fails(
    answers: Answers, seen: list[dict[str, Any]]
) -> None:
    assert answers["rebound"]["turn 0"].startswith(PUBLIC)
    assert "Reset" in answers["rebound"]["turn 1"]
    assert "Reset" in answers["rebound"]["turn 2"]
    # One look-up a connection: what was checked is what was connected to.
    kinds = [line["kind"] for line in seen if line.get("asked") == "rebound.example.com"]
    assert kinds.count(1) == 3


def test_a_header_unlike_the_target_goes_to_the_checked_address(answers: Answers) -> None:
    # Documented: what a client says inside a connection is not checked, only where it goes.
    assert answers["header"]["host"] == f"{PUBLIC} other.example.com"
    assert answers["header"]["pipelined"].startswith(f"{PUBLIC} deep.wild.example.com")


def test_there_is_no_name_service_inside(answers: Answers, seen: list[dict[str, Any]]) -> None:
    assert {label for label, text in answers["names"].items() if "rror" not in text} == set()
    asked = {line["asked"] for line in seen if "asked" in line}
    allowed = {"api.example.com", "second.example.com", "rebound.example.com"}
    assert {name for name in asked - allowed if not name.endswith(".wild.example.com")} == set()


def test_what_was_asked_for_is_counted_by_name(counted: dict[str, str]) -> None:
    assert counted["second.example.com:8080"].startswith("2 allowed, 0 refused, 80")
    assert "its address 127.0.0.1 is loopback" in counted["rebound.example.com:80"]
    assert "1 allowed, 2 refused" in counted["rebound.example.com:80"]
    assert "not allowed on this port" in counted["api.example.com:8080"]
    sent = int(counted["second.example.com:8080"].partition("refused, ")[2].split()[0])
    assert MUCH < sent < MUCH + 1000


def test_one_worker_cannot_hold_more_than_its_share(answers: Answers) -> None:
    first, _, last = answers["many"]["many"].partition(" / ")
    assert first.startswith(PUBLIC)
    assert "Reset" in last or last == "b''"


def test_an_empty_list_reaches_nothing(internet: Internet) -> None:
    answers = internet.attempts([["a", "tcp", "api.example.com", 80], ["b", "tcp", OTHER, 80]], ())
    assert all("rror" in answer for answer in answers.values())
    assert internet.seen() == []


def test_an_allow_list_that_cannot_be_is_refused(internet: Internet) -> None:
    done = internet.confined(("api.example.com",), "/bin/echo", "it ran")
    assert done.returncode == 2, done.stderr
    assert "--allow: 'api.example.com' has no port" in done.stderr
    assert done.stdout == ""


def _make_repository(folder: Path) -> str:
    source, bare = folder / "source", folder / "files" / "repository.git"
    if not bare.exists():
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "gc.auto=0"]
        source.mkdir()
        (source / "file.txt").write_text("cloned content\n")
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
            subprocess.run(["git", *identity, *words], cwd=source, check=True)
        subprocess.run(["git", "clone", "-q", "--bare", source, bare], check=True)
        subprocess.run(["git", "update-server-info"], cwd=bare, check=True)
        subprocess.run(["chmod", "-R", "a+rX", folder / "files"], check=True)
    return "repository.git"
