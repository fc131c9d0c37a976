"""The library as an ordinary user: no weaker than what the same user's vsm would give."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from supervised import NOBODY, OURSELVES, folder_of, ordinary_user

SCRIPT = """
import json
import vsm
from vsm.confinement.probe import probe_host
from vsm.linux import prctl

open_to_dumps = probe_host()
prctl.forbid_dumps()  # as the runner does, and the launcher
closed = probe_host()
result = vsm.run(pow, 2, 3)
layers = {layer["name"]: layer["state"] for layer in result.layers}
print(json.dumps([open_to_dumps.tier, closed.tier, result.tier, result.value, layers]))
"""


def test_an_ordinary_users_run_has_the_tier_that_the_host_gives(
    scratch: Path, require: Callable[[str, bool, str], None]
) -> None:
    with folder_of(NOBODY if os.geteuid() == 0 else os.geteuid(), scratch) as folder:
        who = ordinary_user(folder, require)
        python = who.command[0] if who is not OURSELVES else sys.executable
        done = subprocess.run(
            [python, "-P", "-c", SCRIPT],
            env=who.environment or None,
            user=who.uid, group=who.uid, extra_groups=None if who.uid is None else [],
            cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        before, closed, tier, value, layers = json.loads(done.stdout)
        require("the namespaced tier", before == "namespaced", "no user namespaces here")
        assert (closed, tier, value) == ("namespaced", "namespaced", 8)
        for layer in ("root_filesystem", "namespaces", "network", "landlock", "seccomp"):
            assert layers[layer] == "in force"
