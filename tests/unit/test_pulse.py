"""A pulse: silence is reported once, an answer in time keeps it going, lateness proves nothing."""

import asyncio

import pytest

from vsm.processes import pulse
from vsm.processes.pulse import Pulse


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "INTERVAL_S", 0.01)


def test_silence_is_reported_once_after_so_many_questions() -> None:
    asked: list[int] = []

    async def scene() -> int:
        silent = asyncio.Event()
        one = Pulse(lambda: asked.append(1), silent.set, most=3)
        one.start()
        await asyncio.wait_for(silent.wait(), 10)
        before = len(asked)
        silent.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(silent.wait(), 0.1)
        assert len(asked) == before
        return before

    assert asyncio.run(scene()) >= 3


def test_whoever_answers_is_asked_again_and_again() -> None:
    async def scene() -> None:
        enough = asyncio.Event()
        count = 0

        def ask() -> None:
            nonlocal count
            count += 1
            one.answered()
            if count == 10:
                enough.set()

        one = Pulse(ask, lambda: pytest.fail("it answers"), most=1)
        one.start()
        await asyncio.wait_for(enough.wait(), 10)
        one.stop()

    asyncio.run(scene())


def test_who_is_late_himself_does_not_blame_the_other() -> None:
    """A supervisor that was suspended reads the answers that wait for it before it judges."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        blamed = asyncio.Event()
        one = Pulse(lambda: None, blamed.set, most=0)
        one._beat(loop.time() - 1.0)
        assert not blamed.is_set()
        await asyncio.wait_for(blamed.wait(), 10)

    asyncio.run(scene())
