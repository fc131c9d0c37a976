"""What the supervisor starts and forgets of integrations, whatever comes in between."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vsm.configuration.changes import Change
from vsm.configuration.config import Config, Integration
from vsm.core import restart
from vsm.errors import NotFoundError, VsmError
from vsm.introspection.control import ControlServer
from vsm.supervision import moves, provision
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


def a_server(group: IntegrationGroup) -> ControlServer:
    policing = SimpleNamespace(approvals=None, approve=None, deny=None)
    config = SimpleNamespace(integrations={})
    supervisor = SimpleNamespace(integrations=group, policing=policing, config=config)
    return ControlServer(supervisor)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["start", "restart"])
def test_what_is_removed_and_still_ends_is_not_started_again(command: str) -> None:
    """No reload would ever end it: it is in no file any more."""

    async def main() -> None:
        group = a_group()
        with pytest.raises(VsmError, match="removed from the configuration, and ends"):
            await a_server(group)._run(command, {"name": "a"})
        assert not group.workers.worker("a").wanted
        group.workers.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_command_about_what_a_reload_removes_meanwhile_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        group = a_group()

        async def move(*_words: object) -> None:
            group.forget("a")

        monkeypatch.setattr(moves, "move", move)
        with pytest.raises(NotFoundError, match="removed from the configuration meanwhile"):
            await a_server(group)._run("stop", {"name": "a"})
        group.workers.close()

    asyncio.run(main())
