"""The probe tells what works, by trying it, and leaves nothing behind."""

import json
import subprocess
import sys

import msgspec

from vsm.configuration.profile import LAYERS
from vsm.confinement import cgroup
from vsm.confinement.probe import HostFacts, layer_table, probe_host


def test_facts_survive_serialisation() -> None:
    facts = probe_host()
    assert msgspec.json.decode(msgspec.json.encode(facts), type=HostFacts) == facts


def test_every_absent_fact_has_its_reason() -> None:
    facts = probe_host()
    for name in ("root_filesystem", "proc_mount", "seccomp", "pidfd", "clone3", "idmapped_mounts"):
        assert getattr(facts, name) or facts.reasons[name], name
    for kind, works in facts.namespaces.items():
        assert works or facts.reasons[f"namespaces.{kind}"]


def test_probe_without_privileges_falls_back_and_explains() -> None:
    """Where user namespaces are forbidden: a limit of 0 in a user namespace of our own."""
    code = (
        "import json, msgspec, os\n"
        "from vsm.linux import trials\n"
        "from vsm.confinement.probe import layer_table, probe_host\n"
        "probe_host()\n"  # loads what is loaded late
        "trials.unshare('user')\n"
        "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
        "os.setresuid(os.getuid(), os.getuid(), os.getuid())\n"
        "import ctypes; ctypes.CDLL(None).prctl(8, 0)\n"
        "facts = probe_host()\n"
        "print(msgspec.json.encode({'facts': facts, 'rows': layer_table(facts)}).decode())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    answer = json.loads(done.stdout)
    assert answer["facts"]["user_namespaces"] is False
    assert "space" in answer["facts"]["reasons"]["user_namespaces"]


def test_table_has_every_layer_and_a_remedy_for_what_is_missing() -> None:
    rows = layer_table(probe_host())
    assert [row.layer for row in rows] == list(LAYERS)
    nothing = layer_table(HostFacts(cgroup=cgroup.CgroupFacts(reason="none is mounted")))
    assert [row.layer for row in nothing] == list(LAYERS)
    assert all(row.remedy for row in nothing if row.state != "works")
    assert {row.layer for row in nothing if row.state == "absent"} >= {"landlock", "seccomp"}
