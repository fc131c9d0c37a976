"""What an audit from within says where its sibling gave no answer: whose fault that is."""

import asyncio
import os
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from vsm.governance import attacks
from vsm.governance.worker_audit import Audits
from vsm.messages import Audit

NO_ANSWER = {"error": "the sibling gave no answer"}


class Stage:
    """A worker that serves, and a launcher whose siblings say nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attacks, "attacks", lambda _plan, **_root: ("one",))
        monkeypatch.setattr(
            "vsm.governance.kernel_facts.compare_all",
            lambda _workers: SimpleNamespace(checked=1, processes=1, failed={}, unknown=()),
        )
        monkeypatch.setattr(
            "vsm.governance.pressure.sample", lambda _group: SimpleNamespace(used={"memory": 1.0})
        )
        self.process = subprocess.Popen(["/bin/sleep", "60"])
        self.pidfd = os.pidfd_open(self.process.pid)
        self.kills = 3
        group = SimpleNamespace(usage=lambda: SimpleNamespace(oom_kills=self.kills))
        limits = SimpleNamespace(memory_bytes=2**20)
        provided = SimpleNamespace(
            plan=SimpleNamespace(clone_flags=1),
            group=group,
            profile=SimpleNamespace(limits=limits),
        )
        spawned = SimpleNamespace(pidfd=self.pidfd)
        self.worker: Any = SimpleNamespace(
            name="it", worker_id="it-1", provided=provided, spawned=spawned
        )
        self.happens: Any = lambda: None

    async def attack(self, _worker: str, _names: object) -> dict[str, Any]:
        self.happens()
        return NO_ANSWER

    def audited(self) -> Any:
        link = SimpleNamespace(attack=self.attack)
        actor = SimpleNamespace(link=link)
        supervisor: Any = SimpleNamespace(integrations=SimpleNamespace(launcher_actor=actor))

        async def ask() -> Any:
            told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

            def tell(_system: str, message: Any) -> bool:
                if message.kind == "contract":
                    answer: Any = SimpleNamespace(id=message.id, checked=1, failed={}, unknown=())
                    audits.contracted(answer)
                else:
                    told.set_result(message)
                return True

            audits = Audits(supervisor, lambda: {"it": [self.worker]}, tell)
            audits.asked(Audit(id=1, integration="it"))
            return await asyncio.wait_for(told, 30)

        return asyncio.run(ask())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.pidfd)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = Stage(monkeypatch)
    yield found
    found.close()


def test_sibling_that_says_nothing_fails_the_audit(stage: Stage) -> None:
    assert stage.audited().failed == {"sibling": "the sibling gave no answer"}


def test_sibling_that_the_kernel_killed_at_the_workers_limit_fails_nothing(stage: Stage) -> None:
    def kill() -> None:
        stage.kills += 1

    stage.happens = kill
    assert stage.audited().failed == {}


def test_sibling_of_a_worker_that_died_fails_nothing_before_its_death_is_known(
    stage: Stage,
) -> None:
    def die() -> None:
        stage.process.kill()
        stage.process.wait()

    stage.happens = die
    assert stage.audited().failed == {}
