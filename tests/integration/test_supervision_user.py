"""vsm as an ordinary user: two servers in namespaces, a replaced gateway, an end in order."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
from supervised import (
    BOUND_S,
    NOBODY,
    Started,
    all_ready,
    folder_of,
    kill,
    left_of,
    ordinary_user,
    rows,
    wait_until,
    write_config,
)


def echoed(one: Started, integration: str, text: str) -> str:
    words = ("call", integration, "echo", json.dumps({"text": text}))
    client = one.start(*words, to=subprocess.PIPE)
    printed, complaint = client.communicate(timeout=BOUND_S)
    assert client.returncode == 0, complaint
    return printed.decode()


def assert_counted_whole(one: Started, name: str) -> None:
    """The server's use counts, not its mini-init's alone."""
    server = psutil.Process(rows(one)[name]["pid"]).children()[0]
    used, times = server.memory_full_info(), server.cpu_times()
    row = rows(one)[name]
    assert row["memory_bytes"] > used.uss / 2
    assert row["cpu_s"] >= round(times.user + times.system, 2)  # both are counted in ticks


def test_vsm_serves_an_ordinary_user(
    scratch: Path, require: Callable[[str, bool, str], None]
) -> None:
    uid = NOBODY if os.geteuid() == 0 else os.geteuid()
    with folder_of(uid, scratch) as folder:
        who = ordinary_user(folder, require)
        one = Started(folder, write_config(folder, good="well", near="well"), who=who)
        one.wait_log("vsm: ready")
        before = wait_until(one, all_ready)
        for name in ("good", "near"):
            assert os.stat(f"/proc/{before[name]['pid']}").st_uid == uid
            layers = {layer["name"]: layer["state"] for layer in before[name]["layers"]}
            namespaced = before[name]["tier"] == "namespaced"
            require("the namespaced tier", namespaced, "no user namespaces for ordinary users")
            for layer in ("root_filesystem", "namespaces", "network", "seccomp"):
                assert layers[layer] == "in force"
            assert "hello" in echoed(one, name, "hello")
            assert_counted_whole(one, name)
        kill(before["system1"]["pid"])
        wait_until(
            one,
            lambda seen: all_ready(seen) and seen["system1"]["pid"] != before["system1"]["pid"],
        )
        assert "again" in echoed(one, "good", "again")
        assert {n: rows(one)[n]["pid"] for n in ("good", "near")} == {
            n: before[n]["pid"] for n in ("good", "near")
        }
        assert one.end() == 0, one.log()
        assert left_of(one) == []


def test_a_state_directory_that_its_user_may_not_enter_stops_no_vsm(
    scratch: Path, require: Callable[[str, bool, str], None]
) -> None:
    """What is kept there is not known to be absent: grants are said to be forgotten."""
    uid = NOBODY if os.geteuid() == 0 else os.geteuid()
    with folder_of(uid, scratch) as folder:
        who = ordinary_user(folder, require)
        config = write_config(folder, good="well")
        with config.open("a", encoding="utf-8") as file:
            file.write('[[policy.rules]]\nname = "r"\naction = "ask"\ntool = "write_*"\n')
        state = folder / "state"
        state.mkdir(mode=0)
        os.chown(state, uid, uid)
        one = Started(folder, config, who=who)
        one.wait_log("vsm: ready")
        for said in ("journal: cannot write", "what was granted before is forgotten"):
            one.wait_log(said)
        assert "may not be read. Be the user who runs vsm" in one.log()
        wait_until(one, lambda seen: seen["good"]["state"] == "ready")
        assert "trust.unreadable" in one.log()  # so that it serves nothing, rather than anything
        assert "Traceback" not in one.log()
        assert one.end() == 0, one.log()
        state.chmod(0o700)
