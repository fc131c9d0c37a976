"""Rules, approvals and pain of a running vsm: denied, asked, approved, remembered."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import running
from supervised import state
from wire_client import Client

SERVERS = Path(__file__).resolve().parents[1] / "servers"
BOUND_S = 40.0
CONFIG = f"""
[policy]
ask_timeout_s = 30
denials_per_minute = 3

[[policy.rules]]
name = "no-refusals"
action = "deny"
tool = "refuse*"
reason = "it only refuses"

[[policy.rules]]
name = "no-etc"
action = "deny"
argument = {{ path = "/etc/*" }}

[[policy.rules]]
name = "no-secret"
action = "deny"
resource = "mem://any/secret*"

[[policy.rules]]
name = "ask-fails"
action = "ask"
client = "unix:{os.geteuid()}"
tool = "fails"

[[policy.rules]]
name = "ask-nests"
action = "ask"
tool = "nests"

[[policy.rules]]
name = "twice"
action = "allow"
tool = "quotes"
budget = {{ calls = 2, period_s = 3600 }}

[integrations.it]
command = ["/usr/bin/python3", "-SI", "{SERVERS}/outcomes.py"]
read = ["{SERVERS}"]

[integrations.bad]
command = ["/bin/false"]
enabled = false
restart = {{ intensity = 0 }}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "vsm.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def vsm(config: Path, session_leaves_nothing: None) -> Iterator[running.Running]:
    del session_leaves_nothing
    with running.running(config) as it:
        yield it
        assert it.stop() == 0


@pytest.fixture
def client(vsm: running.Running) -> Iterator[Client]:
    client = Client(vsm.folder)
    yield client
    client.close()


def answered(vsm: running.Running, *words: str) -> Any:
    done = vsm.vsm(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def until(look: Callable[[], Any]) -> Any:
    """What `look` finds, as soon as it finds anything; the control socket tells nobody."""
    end = time.monotonic() + BOUND_S
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def waiting(vsm: running.Running) -> dict[str, Any]:
    found: dict[str, Any] = until(lambda: answered(vsm, "approvals")["pending"])[0]
    return found


def test_a_denied_tool_does_not_reach_its_server(vsm: running.Running, client: Client) -> None:
    assert "result" in client.call("works")
    error = client.call("refuses")["error"]
    assert error["code"] == -32003
    assert "the rule 'no-refusals'" in error["message"]
    assert error["data"]["reason"] == "it only refuses"
    assert "result" in client.call("works", path="/tmp/x")
    for path in ("/etc/passwd", "/tmp/../etc/passwd", ["/tmp/x", "/etc/x"]):
        assert client.call("works", path=path)["error"]["data"]["denied_by"] == "the rule 'no-etc'"
    assert "result" in client.ask("resources/read", uri="mem://any/open")
    for uri in ("mem://any/secret", "mem://any/open/../secret/x", "mem://any/%73ecret"):
        denied = client.ask("resources/read", uri=uri)["error"]
        assert denied["data"]["denied_by"] == "the rule 'no-secret'"
    row = answered(vsm, "board", "dump")["demand"]["integrations"]["it"]["classes"]
    assert row["refuses"] == [0, 0, 0, 0, 1, 0], "counted as denied, never as answered"
    assert row["works"] == [2, 0, 0, 0, 3, 0]


def test_a_denial_can_be_explained(vsm: running.Running, client: Client) -> None:
    client.call("refuses")

    def of_the_rule() -> list[dict[str, Any]]:
        rows = answered(vsm, "decisions", "--rule", "policy.rule")
        return [row for row in rows if row["inputs"]["rule"] == "no-refusals"]

    row = until(of_the_rule)[0]
    assert (row["source"], row["choice"]) == ("system1", "deny")
    assert row["inputs"]["client"] == f"unix:{os.geteuid()}"
    assert row["inputs"]["calls_itself"] == "claude-test"
    assert row["alternatives"] == ["allow", "ask"]


def test_a_budget_that_is_used_up_denies(client: Client) -> None:
    answers = [client.call("quotes") for _ in range(3)]
    assert ["result" in answer for answer in answers] == [True, True, False]
    assert "2 calls in 3600 s are used up" in answers[2]["error"]["message"]


def test_a_person_denies_then_approves_then_approves_for_a_while(
    vsm: running.Running, client: Client
) -> None:
    first = client.begin_call("fails", secret="hunter2")
    found = waiting(vsm)
    assert (found["name"], found["integration"], found["rule"]) == ("fails", "it", "ask-fails")
    assert found["shape"] == {"secret": "text of 7"}
    assert "hunter2" not in json.dumps(found), "arguments are only hashed"
    assert "result" in client.call("works"), "others are not held up"
    assert answered(vsm, "deny", found["id"])["verdict"] == "denied"
    assert client.end(first)["error"]["code"] == -32003

    second = client.begin_call("fails")
    done = vsm.vsm("approve", waiting(vsm)["id"], "--always-for", "1h")
    assert done.stdout.startswith("approved: fails of it, and the like of it until 20"), done.stderr
    assert client.end(second)["result"]["isError"] is True
    assert client.call("fails")["result"]["isError"] is True, "granted: nobody is asked"
    assert vsm.vsm("deny", found["id"]).returncode == 5
    shown = answered(vsm, "approvals")
    assert [grant["name"] for grant in shown["grants"]] == ["fails"]
    assert {one["verdict"] for one in shown["decided"]} >= {"denied", "approved"}


def test_a_client_that_cancels_takes_its_question_back(
    vsm: running.Running, client: Client
) -> None:
    request = client.begin_call("nests")
    approval = waiting(vsm)["id"]
    client.tell("notifications/cancelled", requestId=request)
    until(lambda: not answered(vsm, "approvals")["pending"])
    decided = {one["id"]: one["verdict"] for one in answered(vsm, "approvals")["decided"]}
    assert decided[approval] == "withdrawn"


def test_denials_beyond_a_rate_hurt_at_once_and_are_followed(
    vsm: running.Running, client: Client
) -> None:
    words = [running.VSM, "events", "--follow", "--json", "--kind", "algedonic.*"]
    follower = subprocess.Popen(
        words, env=vsm.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert follower.stdout is not None
    stop = threading.Timer(BOUND_S, follower.kill)
    stop.start()
    try:
        for _ in range(8):
            client.call("refuses")
        rows = (json.loads(line) for line in follower.stdout)
        row = next(row for row in rows if row["detail"].get("cause") == "denials")
    finally:
        stop.cancel()
        follower.send_signal(signal.SIGKILL)
        follower.wait()
        follower.stdout.close()
    assert (row["kind"], row["source"], row["severity"]) == ("algedonic.pain", "system1", "error")
    assert row["worker"] == f"unix:{os.geteuid()}"
    pains = vsm.status()["pains"]
    assert ("denials", row["worker"]) in {(one["cause"], one["subject"]) for one in pains}
    assert "denied in a minute" in vsm.log()


def test_quarantine_hurts_until_somebody_cares(vsm: running.Running) -> None:
    def pains() -> list[str]:
        return [one["cause"] for one in vsm.status()["pains"] if one["subject"] == "bad"]

    assert vsm.vsm("start", "bad").returncode == 1, "it ends in quarantine"
    assert "quarantine" in until(pains)
    assert "hurts: bad (quarantine): " in vsm.vsm("status").stdout
    assert vsm.vsm("stop", "bad").returncode == 0
    until(lambda: "quarantine" not in pains())
    rows = answered(vsm, "events", "--kind", "algedonic.*", "--worker", "bad")
    assert [row["kind"] for row in rows if row["detail"]["cause"] == "quarantine"] == [
        "algedonic.pain",
        "algedonic.relief",
    ]


def test_vsm_explains_itself_to_models_and_to_people(vsm: running.Running, client: Client) -> None:
    for _ in range(40):
        client.call("works")
    client.call("works", path="/etc/\x1b[31mred")

    def tell(tool: str, **arguments: str) -> dict[str, Any]:
        result = client.ask("tools/call", name=f"vsm__{tool}", arguments=arguments)["result"]
        assert not result["isError"]
        found: dict[str, Any] = result["structuredContent"]
        return found

    explained = until(lambda: tell("explain_decision", about="policy.*")["decisions"])
    denied = [one for one in explained if one["choice"] == "deny"]
    assert denied[0]["decided_by"] == "system1"
    assert denied[0]["subject"].startswith("> it: ")
    assert denied[0]["inputs"]["client"] == f"> unix:{os.geteuid()}"
    assert tell("explain_decision", about=str(denied[0]["number"]))["decisions"] == denied[:1]
    assert "no such decision" in tell("explain_decision", about="nobody")["not_enough_evidence"]
    assert {one["kind"] for one in tell("events", about="approval.*")["events"]} == {
        "approval.wanted"
    }

    reflected = tell("reflect")
    (works,) = [one for one in reflected["capabilities"] if one["demand"] == "> works"]
    assert works["answered_well"]["low"] < works["answered_well"]["share"] < 1.0
    (fails,) = [one for one in reflected["capabilities"] if one["demand"] == "> fails"]
    assert fails["answered_well"] is None, "too few calls"
    assert "of history" in reflected["unusual"]["not_enough_evidence"]
    asked = [one for one in reflected["learned"] if one["rule"] == "policy.ask"]
    assert asked[0]["outcomes_known"] >= 3
    assert asked[0]["turned_out_well"] is None
    assert "not_enough_evidence" in tell("predictions")

    printed = vsm.vsm("reflect").stdout
    assert "not enough evidence" in printed
    assert "works" in printed
    assert answered(vsm, "reflect")["capabilities"]


def test_rules_hold_across_the_deaths_of_both_who_know_them(
    vsm: running.Running, client: Client
) -> None:
    for name in ("system5", "system1"):
        pid = next(one["pid"] for one in vsm.status()["workers"] if one["name"] == name)
        os.kill(pid, signal.SIGKILL)
        until(
            lambda name=name, pid=pid: any(
                one["name"] == name and one["state"] == "ready" and one["pid"] != pid
                for one in vsm.status()["workers"]
            )
        )
    client.close()
    again = Client(vsm.folder)
    assert again.call("refuses")["error"]["code"] == -32003
    assert again.call("fails")["result"]["isError"] is True, "the grant is known to the new S1"
    assert "used up" in again.call("quotes")["error"]["message"], "so is what was spent"
    again.close()


def test_edited_rules_hold_as_soon_as_they_are_reloaded(
    tmp_path: Path, session_leaves_nothing: None
) -> None:
    del session_leaves_nothing
    config = tmp_path / "vsm.toml"
    server = CONFIG[CONFIG.index("[integrations.it]") : CONFIG.index("[integrations.bad]")]
    deny = '[[policy.rules]]\naction = "deny"\ntool = "{}"\n'
    config.write_text(server, encoding="utf-8")
    with running.running(config) as it:
        client = Client(it.folder)
        assert "result" in client.call("works")
        for denied, allowed in (("works", "quotes"), ("quotes", "works"), ("", "quotes")):
            rules = deny.format(denied) if denied else ""
            config.write_text(rules + server, encoding="utf-8")
            (change,) = answered(it, "reload")["changes"]
            assert (change["name"], change["outcome"]) == ("[policy]", "changed")
            assert "result" in client.call(allowed)
            if denied:
                assert client.call(denied)["error"]["code"] == -32003
        assert state(it, "system1")["policy"]["rules"] == 0
        client.close()
        assert it.stop() == 0


def test_approvals_are_remembered_after_everything_was_killed(
    config: Path, tmp_path: Path, session_leaves_nothing: None
) -> None:
    del session_leaves_nothing
    with running.running(config, again=tmp_path) as it:
        client = Client(it.folder)
        first = client.begin_call("fails")
        assert answered(it, "approve", waiting(it)["id"], "--always-for", "1h")
        assert "result" in client.end(first)
        client.begin_call("nests")
        left = waiting(it)["id"]
        it.process.kill()
        it.process.wait()
        client.close()
    before = answered(it, "approvals")
    assert [one["verdict"] for one in before["decided"]] == ["approved"]
    with running.running(config, again=tmp_path) as it:
        client = Client(it.folder)
        assert client.call("fails")["result"]["isError"] is True, "granted before the restart"
        client.close()
        decided = {one["id"]: one["verdict"] for one in answered(it, "approvals")["decided"]}
        assert decided[left] == "abandoned"
        assert it.stop() == 0
