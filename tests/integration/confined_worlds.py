"""Running something confined as root or as an ordinary user, in a child, for the tests here."""

import codecs
import functools
import json
import os
import select
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from vsm.configuration.profile import Profile, load_profile
from vsm.confinement.plan import WorkerRequest, compile_plan
from vsm.confinement.probe import HostFacts, probe_host
from vsm.linux import prctl
from vsm.processes.launch import spawn_confined, wait_confined

NOBODY = 65534
WORKER_UID = 0x7000_1234
IS_ROOT = os.geteuid() == 0
WORLDS = [
    (who, tier)
    for who in (("root", "user") if IS_ROOT else ("user",))
    for tier in ("namespaced", "landlocked")
]
BOUND_S = 30.0
MUCH = 1 << 40  # bytes
WHOLE_LANDLOCK = 6  # the ABI from which on it can stand alone


@functools.cache
def profile() -> Profile:
    return load_profile("integration")


@functools.cache
def host(who: str) -> HostFacts:
    answer = as_user(who, lambda: msgspec.to_builtins(probe_host()))
    return msgspec.convert(answer, HostFacts)


def as_user(who: str, work: Callable[[], Any]) -> Any:
    """Run `work` in a forked child of that user; its JSON-able answer."""
    codecs.lookup("ascii")  # the child may be unable to read our interpreter's modules
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if who == "user" and IS_ROOT:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                prctl.allow_dumps()  # as a process that this user started would be
            answer = {"answer": work()}
            code = 0
        except BaseException as error:  # noqa: BLE001 - a forked child must not return
            answer = {"error": type(error).__name__, "text": str(error)}
            answer["trace"] = traceback.format_exc()
        finally:
            os.write(writer, json.dumps(answer).encode())
            os._exit(code)
    os.close(writer)
    answer = json.loads(read_all(reader))
    os.waitpid(pid, 0)
    if "error" in answer:
        raise ChildFailedError(answer["error"], answer["text"], answer["trace"])
    return answer["answer"]


class ChildFailedError(Exception):
    """The work in the child raised: (type, text, trace)."""


def read_all(fd: int) -> bytes:
    content = b""
    while True:
        assert select.select([fd], [], [], BOUND_S)[0], f"nothing came after {content!r}"
        block = os.read(fd, 65536)
        if not block:
            os.close(fd)
            return content
        content += block


def plan_for(who: str, tier: str, argv: list[str], **changes: Any) -> Any:
    facts = host(who)
    chosen = changes.pop("profile", None) or profile()
    if tier == "landlocked" and 0 < facts.landlock_abi < WHOLE_LANDLOCK:
        lacks = chosen.may_lack | {"landlock"}  # what there is of it
        chosen = msgspec.structs.replace(chosen, may_lack=lacks)
    # Forked from these tests, without a control group: RLIMIT_DATA stands for the limit of memory,
    # and counts what hours of tests have left in this process.
    limits = msgspec.structs.replace(chosen.limits, memory_bytes=MUCH)
    chosen = msgspec.structs.replace(chosen, limits=limits)
    fields = {"name": "test", "uid": WORKER_UID if facts.root else None, **changes}
    request = WorkerRequest(argv=tuple(argv), tier=tier, **fields)  # type: ignore[arg-type]
    return compile_plan(chosen, request, facts)


def run_confined(
    who: str, tier: str, argv: list[str], *, without: Any = None, **changes: Any
) -> dict[str, Any]:
    """Run to the end, without a kind of step: output (both streams), status, signal, layers."""
    host(who)

    def work() -> dict[str, Any]:
        plan = plan_for(who, tier, argv, **changes)
        if without is not None:
            kept = tuple(step for step in plan.operations if not isinstance(step, without))
            plan = plan._replace(operations=kept)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        spawned = spawn_confined(plan, null, writer, writer)
        os.close(writer)
        output = read_all(reader).decode(errors="replace")
        report = wait_confined(spawned, BOUND_S)
        return {
            "output": output,
            "status": report.status,
            "signal": report.signal,
            "cause": report.cause,
            "layers": {layer["name"]: layer["state"] for layer in spawned.layers},
            "left": plan.scratch_dir and os.path.exists(plan.scratch_dir),
        }

    answer: dict[str, Any] = as_user(who, work)
    return answer
