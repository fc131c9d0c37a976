"""What a pool's desk makes of what its workers say, and of its own end."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

import vsm
from vsm.core import restart
from vsm.library.pool import _Call, _Desk
from vsm.library.values import Answer


class Process:
    """A worker that is killed and not dead yet."""

    name, late, given = "pool-1", False, 0

    def call(self, *_: object) -> bool:
        self.given += 1
        return True

    def kill(self, *, late: bool = False) -> None:
        self.late |= late


def test_a_worker_that_is_being_killed_gets_no_other_call() -> None:
    async def main() -> None:
        desk, process, workers = _Desk(1, 100), Process(), object()
        first, second = _Call(1, b""), _Call(2, b"")
        desk.free.append(process)  # type: ignore[arg-type]
        desk.waiting += [first, second]
        desk.assign()
        said: Any = desk.said
        said(workers, process, None, "it made no sense")
        said(workers, process, Answer("value", 1, call=1), "")
        assert first.done.result()[1] == "refused"
        assert process.given == 1
        assert list(desk.waiting) == [second]

    asyncio.run(main())


def test_a_pool_whose_workers_were_given_up_says_so() -> None:
    async def main() -> None:
        pool = vsm.Pool(int, size=1)
        pool._workers.is_running = True
        group = pool._workers._group
        group.group = replace(
            group.group,
            workers={
                name: replace(worker, phase="quarantined", reason="its profile is gone")
                for name, worker in group.group.workers.items()
            },
        )
        pool._desk.changed(restart.Changed("pool-1", 1, "quarantined", "its profile is gone"))
        with pytest.raises(vsm.VsmError, match="given up: its profile is gone"):
            await pool.call(1)

    asyncio.run(main())


def test_calls_of_a_pool_whose_end_is_cancelled_come_to_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        pool = vsm.Pool(int)
        waiting, held = _Call(1, b""), _Call(2, b"")
        pool._desk.waiting.append(waiting)
        pool._desk.busy[Process()] = held  # type: ignore[index]

        async def cancelled() -> None:
            raise asyncio.CancelledError

        monkeypatch.setattr(pool._workers, "stop", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await pool.__aexit__(None, None, None)
        assert [call.done.done() for call in (waiting, held)] == [True, True]

    asyncio.run(main())
