"""Runs one command confined, or not, as whoever started this process; prints what happened.

`python driver.py SPEC`, where SPEC has: argv, read, write, env, world (folder to start in,
with a descriptor left open on its secret file) and either "confined": false or profile (a
file), tier, facts (what the probe found for this user), host (facts to claim instead), limits
(whether to make a control group). "system" names one of the five instead.
Prints {"stdout", "stderr", "exit", "tier", "layers"} or {"refused", "layer", "remedy"}.
"""

import json
import os
import sys
import tempfile
from contextlib import ExitStack
from typing import Any

LEAKED_FD = 77


def main() -> None:
    spec = json.loads(sys.argv[1])
    os.chdir(spec["world"])
    # What a careless parent leaks: an inheritable descriptor (the variable is in our environment).
    os.dup2(os.open("secret.txt", os.O_RDONLY), LEAKED_FD, inheritable=True)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        how = _system if "system" in spec else _confined if spec["confined"] else _unconfined
        answer = how(spec, out.fileno(), err.fileno())
        out.seek(0)
        err.seek(0)
        answer |= {"stdout": out.read().decode(), "stderr": err.read().decode(errors="replace")}
    sys.stdout.write(json.dumps(answer))


def _unconfined(spec: dict[str, Any], out: int, err: int) -> dict[str, Any]:
    pid = os.fork()
    if pid == 0:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.execve(spec["argv"][0], spec["argv"], {**os.environ, **spec["env"]})
    return {"exit": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def _confined(spec: dict[str, Any], out: int, err: int) -> dict[str, Any]:
    import msgspec

    from vsm.commands.sandbox import FIRST_RUN_UID, _group
    from vsm.configuration.profile import load_profile
    from vsm.confinement.plan import WorkerRequest, compile_plan
    from vsm.confinement.probe import HostFacts
    from vsm.errors import ConfinementError
    from vsm.processes.launch import spawn_confined

    profile = load_profile(spec["profile"])
    facts = msgspec.convert(spec["facts"], HostFacts)
    groups = facts.cgroup
    host = msgspec.structs.replace(facts, **spec.get("host", {}))
    with ExitStack() as stack:
        group = stack.enter_context(_group(profile, groups)) if spec.get("limits", True) else None
        null = stack.enter_context(open(os.devnull, "rb"))
        request = WorkerRequest(
            name="battery",
            argv=tuple(spec["argv"]),
            cwd=spec.get("cwd"),
            env=spec["env"],
            read=tuple(spec["read"]),
            write=tuple(spec["write"]),
            uid=FIRST_RUN_UID + os.getpid() if host.root else None,
            tier=spec["tier"],
            cgroups=group.paths if group else (),
            cgroup_layers=group.layers if group else (),
        )
        try:
            plan = compile_plan(profile, request, host)
            spawned = spawn_confined(plan, null.fileno(), out, err)
        except ConfinementError as error:
            return {"refused": error.what, "layer": error.layer, "remedy": error.remedy}
        os.close(spawned.pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(spawned.pid, 0)[1])
        return {"exit": code, "tier": plan.tier, "layers": spawned.layers}


def _system(spec: dict[str, Any], out: int, _err: int) -> dict[str, Any]:
    """Children confine themselves as the systems do; argv is that of a run of attempts.py."""
    import msgspec

    from vsm import attempts
    from vsm.configuration.profile import load_profile
    from vsm.confinement import uids
    from vsm.confinement.execution import confine_self
    from vsm.confinement.plan import WorkerRequest, compile_plan
    from vsm.confinement.probe import HostFacts

    host = msgspec.convert(spec["facts"], HostFacts)
    uid = uids.system_uids()[spec["system"]] if host.root else None
    request = WorkerRequest(name=spec["system"], argv=(), uid=uid)
    plan = compile_plan(load_profile(spec["system"]), request, host)
    world, names = json.loads(spec["argv"][5]), spec["argv"][6:]
    world |= {"parent": os.getpid(), "open_at_start": []}

    def confined(action: Any) -> Any:
        def run(world: dict[str, Any]) -> None:
            confine_self(plan)
            action(world)

        return run

    # A system cannot fork, so each attempt is a fresh child that confines itself first.
    actions = {name: confined(attempts.ATTEMPTS[name].action) for name in names}
    results = {name: attempts.outcome_of(action, world) for name, action in actions.items()}
    os.write(out, json.dumps(results).encode())
    return {"exit": 0, "tier": plan.tier}


if __name__ == "__main__":
    main()
