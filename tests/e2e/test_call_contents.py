"""What calls carried is recorded where it is asked for, and no secret with it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Running, running

BOUND_S = 60.0
TAIL = os.urandom(8).hex()
SECRETS = {
    "PLAIN": f"s3cr3t-{TAIL}",
    "ODD": f'quote"back\\slash\u00e4\U0001f511/{TAIL}',
    "LINES": f"-----BEGIN {TAIL}-----\nfirst-{TAIL}\nsecond-{TAIL}\n-----END-----",
}
CLIENT_TOKEN = f"client-token-{TAIL}"
SERVER = Path(__file__).resolve().parents[1] / "servers/echo_legacy.py"
# One that repeats its environment, as text, as JSON in text and as an error.
REPEATING = """
import json, os, sys
def secrets():
    return {name: os.environ[name] for name in ("PLAIN", "ODD", "LINES")}
def send(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    method = message.get("method")
    if method == "initialize":
        version = message["params"]["protocolVersion"]
        info = {"name": "repeating", "version": "1"}
        result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
    elif method == "tools/list":
        schema = {"type": "object"}
        result = {"tools": [{"name": n, "inputSchema": schema} for n in ("tell", "fail", "long")]}
    elif method == "tools/call":
        tool, arguments = message["params"]["name"], message["params"].get("arguments", {})
        if tool == "fail":
            error = {"code": -32000, "message": secrets()["ODD"], "data": secrets()}
            send(id=message["id"], error=error)
            continue
        text = json.dumps({"environment": secrets(), "said": arguments})
        if tool == "long":
            text = "x" * arguments["before"] + secrets()["PLAIN"] * 400
        result = {"content": [{"type": "text", "text": text}], "structuredContent": secrets()}
    elif "id" in message:
        send(id=message["id"], error={"code": -32601, "message": "Method not found"})
        continue
    else:
        continue
    send(id=message["id"], result=result)
"""
CONFIG = """
[gateway]
audit = "all"
[integrations.kept]
command = [{python}, {server}]
profile = "python-server"
audit_contents = "{most}"
secrets = {{ PLAIN = {{ file = {PLAIN} }}, ODD = {{ file = {ODD} }}, LINES = {{ file = {LINES} }} }}
[integrations.bare]
command = ["/usr/bin/python3", {echo}]
read = [{folder}]
profile = "python-server"
[clients.known]
token_file = {token}
"""


def config(folder: Path, most: str) -> Path:
    words: dict[str, Any] = {"python": sys.executable, "server": folder / "server.py"}
    words |= {"echo": SERVER, "folder": SERVER.parent, "token": folder / "token"}
    words |= {name: folder / name for name in SECRETS}
    quoted = {name: json.dumps(str(word)) for name, word in words.items()}
    path = folder / "vsm.toml"
    path.write_text(CONFIG.format(most=most, **quoted), encoding="utf-8")
    return path


@pytest.fixture
def folder(test_leaves_nothing: None, tmp_path: Path) -> Iterator[Path]:
    del test_leaves_nothing
    tmp_path.chmod(0o755)
    for name, text in {"server.py": REPEATING, "token": CLIENT_TOKEN, **SECRETS}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o644 if name == "server.py" else 0o600)
    return tmp_path


def call(
    vsm: Running, name: str, tool: str, **arguments: Any
) -> "subprocess.CompletedProcess[str]":
    return vsm.vsm("call", name, tool, json.dumps(arguments))


def recorded(vsm: Running, least: int) -> list[dict[str, Any]]:
    end = time.monotonic() + BOUND_S
    while True:
        lines = vsm.vsm("audit", "--since", "1h").stdout.splitlines()
        if len(lines) >= least:
            return [json.loads(line) for line in lines]
        assert time.monotonic() < end, lines
        time.sleep(0.05)


def files(vsm: Running) -> bytes:
    """All that the record has on disk, whatever form it has there."""
    state = vsm.folder / "state"
    return b"".join(path.read_bytes() for path in state.glob("calls.db*"))


def assert_no_secret(*texts: str) -> None:
    for text in texts:
        assert TAIL not in text
        for one in ("quote", "slash", "-----BEGIN"):
            assert one not in text


def test_contents_are_kept_without_secrets_and_only_where_asked_for(folder: Path) -> None:
    with running(config(folder, "8K")) as vsm:
        vsm.wait_serving()
        secrets = {"mine": SECRETS["ODD"], "token": CLIENT_TOKEN, "own": vsm.token}
        assert "PLAIN" in call(vsm, "kept", "tell", plain="kept words", **secrets).stdout
        assert call(vsm, "kept", "fail").returncode != 0
        assert "bare words" in call(vsm, "bare", "echo", text="bare words").stdout
        told, failed, bare = (row["detail"] for row in recorded(vsm, 3))
        asked = json.loads(told["contents"]["arguments"])
        said = json.loads(told["contents"]["result"])
        assert asked == {
            "plain": "kept words",
            "mine": "[ODD]",
            "token": "[token]",
            "own": "[token]",
        }
        assert said["structuredContent"]["PLAIN"] == "[PLAIN]"
        assert said["structuredContent"]["ODD"] == "[ODD]"
        assert "[LINES]" in said["structuredContent"]["LINES"]
        inner = json.loads(said["content"][0]["text"])
        assert (inner["environment"]["ODD"], inner["said"]["plain"]) == ("[ODD]", "kept words")
        assert json.loads(failed["contents"]["result"])["message"] == "[ODD]"
        assert "truncated" not in told["contents"]
        assert "contents" not in bare
        assert "bare words" not in json.dumps(bare)
        shown = vsm.vsm("calls", "--contents").stdout
        assert "  arguments:\n> {" in shown
        assert "kept words" in shown
        assert "kept words" not in vsm.vsm("calls").stdout
        on_disk = files(vsm)
        assert b"kept words" in on_disk
        assert TAIL.encode() not in on_disk
        assert vsm.token.encode() not in on_disk
        assert_no_secret(json.dumps([told, failed], ensure_ascii=False), shown)
        assert vsm.stop() == 0
        assert TAIL not in vsm.log()


def test_what_is_longer_is_cut_and_says_so_without_the_half_of_a_secret(folder: Path) -> None:
    with running(config(folder, "200")) as vsm:
        vsm.wait_serving()
        first = len('{"content":[{"type":"text","text":"')
        for before in range(150, 201 - first):
            call(vsm, "kept", "long", before=before)
        for row in recorded(vsm, 51 - first):
            contents = row["detail"]["contents"]
            assert contents["truncated"] == ["result"]
            assert json.loads(contents["arguments"])["before"] >= 150
            assert len(contents["result"]) <= 200 + len("[PLAIN]")
            left = contents["result"].partition("x" * 150)[2].lstrip("x")
            assert not SECRETS["PLAIN"].startswith(left[:6]) or len(left) < 6
        assert vsm.stop() == 0


def test_a_reload_begins_and_ends_it_and_a_new_process_knows_the_secrets(folder: Path) -> None:
    with running(config(folder, "0")) as vsm:
        vsm.wait_serving()
        call(vsm, "kept", "tell", plain="not kept")
        # The server has another value than the file by now, and then gets a third one.
        (folder / "PLAIN").write_text(f"second-{TAIL}", encoding="utf-8")
        config(folder, "8K")
        assert vsm.vsm("reload").returncode == 0
        call(vsm, "kept", "tell", plain="kept first")
        recorded(vsm, 2)
        pid = next(row["pid"] for row in vsm.status()["workers"] if row["name"] == "calls")
        os.kill(pid, 9)
        call(vsm, "kept", "tell", plain="kept again")
        recorded(vsm, 3)
        (folder / "PLAIN").write_text(f"third-{TAIL}", encoding="utf-8")
        assert vsm.vsm("restart", "kept").returncode == 0
        assert f"third-{TAIL}" in call(vsm, "kept", "tell", plain="kept last").stdout
        recorded(vsm, 4)
        config(folder, "0")
        assert vsm.vsm("reload").returncode == 0
        call(vsm, "kept", "tell", plain="not kept either")
        rows = recorded(vsm, 5)
        kept = ["contents" in row["detail"] for row in rows]
        assert kept == [False, True, True, True, False]
        assert "kept again" in rows[2]["detail"]["contents"]["arguments"]
        assert all(
            '"PLAIN":"[PLAIN]"' in json.dumps(r).replace(" ", "").replace("\\", "")
            for r in rows[1:4]
        )
        on_disk = files(vsm)
        assert b"not kept" not in on_disk
        assert TAIL.encode() not in on_disk
        assert vsm.stop() == 0
