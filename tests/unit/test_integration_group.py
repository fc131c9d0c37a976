"""What the supervisor starts and forgets of integrations, whatever comes in between."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vsm.configuration.changes import Change
from vsm.configuration.config import Config, Integration
from vsm.core import restart
from vsm.supervision import provision
from vsm.supervision.integration_group import IntegrationGroup
from vsm.supervision.integration_hooks import IntegrationHooks
from vsm.supervision.reload import Reloader


def a_group() -> IntegrationGroup:
    hooks = IntegrationHooks(
        tell_operations=lambda _message, _fds: False,
        operations_ready=lambda: False,
        changed=lambda _change: None,
        host=lambda: None,  # type: ignore[arg-type, return-value]
        ring=lambda _name: None,  # type: ignore[arg-type, return-value]
    )
    return IntegrationGroup({"a": Integration(name="a", command=("x",))}, hooks)


@pytest.mark.parametrize("event", [restart.Stop("a"), restart.Panic()])
def test_who_is_stopped_in_the_moment_of_his_start_is_not_started(
    monkeypatch: pytest.MonkeyPatch, event: restart.Event
) -> None:
    """Two commands may come in one turn of the loop: no process nobody knows of is left by them."""
    provided: list[str] = []

    def provide(*words: Any, **_more: Any) -> None:
        provided.append(words[2])
        raise OSError("nothing is started here")

    monkeypatch.setattr(provision, "provide", provide)

    async def main() -> None:
        group = a_group()
        group.launcher_actor.link = SimpleNamespace(pidfd=0)  # type: ignore[assignment]
        group.workers.send(restart.Start("a"))
        group.workers.send(event)
        assert group.workers.phase("a") == "stopped"
        while group._tasks:
            await asyncio.wait(group._tasks)
        assert provided == []
        group.workers.close()

    asyncio.run(main())


def test_what_is_removed_brought_back_and_removed_again_is_forgotten_once() -> None:
    """Each removal waits until it is dead, and it dies once."""

    async def main() -> None:
        group, forgotten = a_group(), []

        def forget(name: str) -> None:
            forgotten.append(name)
            group.forget(name)

        supervisor: Any = SimpleNamespace(
            config=SimpleNamespace(integrations={}),
            integrations=group,
            regulator=SimpleNamespace(acquired=lambda *_words, **_more: None),
            forget=forget,
        )
        reloader = Reloader(supervisor, None)
        for _ in range(2):
            reloader._begin_removal("a")
        await asyncio.gather(*reloader._removals)
        assert forgotten == ["a"]
        group.workers.close()

    asyncio.run(main())


def test_entry_that_comes_into_force_while_a_reload_checks_is_compared_with_the_file() -> None:
    """Else the file's would be taken for that of the server, which runs by another one."""
    old, new, other = (Integration(name=n, command=(c,)) for n, c in ("ax", "ay", "bx"))
    wanted = Config(integrations={"a": old, "b": other})

    async def main() -> None:
        supervisor: Any = SimpleNamespace(
            config=Config(path=Path("vsm.toml"), integrations={"a": old}),
            integrations=SimpleNamespace(running={}),
            host=SimpleNamespace(facts=SimpleNamespace(root=False)),
            stopping=False,
        )
        reloader = Reloader(supervisor, lambda: wanted)

        async def check(*_words: object) -> None:
            supervisor.config = Config(path=Path("vsm.toml"), integrations={"a": new})

        def apply(_config: Config, _profiles: Any, found: list[Change], _uids: Any) -> list[Any]:
            return [(one.name, one.action) for one in found]

        reloader._check = check  # type: ignore[method-assign]
        reloader._apply = apply  # type: ignore[method-assign]
        assert sorted(await reloader._apply_file()) == [("a", "restart"), ("b", "start")]

    asyncio.run(main())
