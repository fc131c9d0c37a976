"""How much of one server's output is taken at a time, and what is read later for its cost."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from vsm.core import pace
from vsm.gateway.intake import FRAMES_PER_TURN, LARGE_BYTES, Intake
from vsm.protocol.framing import OversizedFrame

BURST_FRAMES = round(pace.BURST_S / pace.FRAME_S)


class Taker:
    """Counts frames; whatever begins with "{" is of use."""

    def __init__(self) -> None:
        self.frames: list[bytes | OversizedFrame] = []
        self.alone = True
        self.turns = 0

    def take(self, frame: bytes | OversizedFrame) -> bool:
        self.frames.append(frame)
        return isinstance(frame, bytes) and frame.startswith(b"{")

    def turn_over(self) -> None:
        self.turns += 1

    def is_alone(self) -> bool:
        return self.alone

    def output_ended(self) -> None: ...


class Pipe:
    """Whether it is read."""

    reading = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def close(self) -> None: ...


class Standing:
    """A loop whose clock does not go on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.call_soon, self.call_at = loop.call_soon, loop.call_at
        self._now = loop.time()

    def time(self) -> float:
        return self._now


def play(scenario: Callable[[Intake, Taker, Pipe], Any]) -> None:
    async def main() -> None:
        taker, pipe = Taker(), Pipe()
        intake = Intake(taker, 4 * 1024 * 1024)
        intake._loop = cast("asyncio.AbstractEventLoop", Standing(intake._loop))
        intake._transport = cast("asyncio.ReadTransport", pipe)
        await scenario(intake, taker, pipe)
        intake.close()

    asyncio.run(asyncio.wait_for(main(), 20))


async def wait_read(pipe: Pipe) -> None:
    """Let the loop turn until the pipe is read again."""
    while not pipe.reading:  # noqa: ASYNC110 - the turns themselves are what is waited for
        await asyncio.sleep(0)


def pause_s(intake: Intake) -> float:
    handle = intake._held
    assert isinstance(handle, asyncio.TimerHandle)
    return handle.when() - intake._loop.time()


def test_others_have_their_turn_between_two_portions_of_one_servers_frames() -> None:
    async def scenario(intake: Intake, taker: Taker, pipe: Pipe) -> None:
        seen: list[int] = []
        intake.data_received(b"{}\n" * (2 * FRAMES_PER_TURN + 1))
        assert len(taker.frames) == FRAMES_PER_TURN
        assert not pipe.reading
        asyncio.get_running_loop().call_soon(lambda: seen.append(len(taker.frames)))
        await wait_read(pipe)
        assert seen == [2 * FRAMES_PER_TURN]
        assert len(taker.frames) == 2 * FRAMES_PER_TURN + 1
        assert taker.turns == 3

    play(scenario)


def test_what_comes_while_frames_are_left_is_taken_after_them() -> None:
    async def scenario(intake: Intake, taker: Taker, pipe: Pipe) -> None:
        lines = [b"{%d}" % number for number in range(3 * FRAMES_PER_TURN)]
        whole = b"\n".join([*lines, b""])
        intake.data_received(whole[:-5])
        intake.data_received(whole[-5:])
        await wait_read(pipe)
        assert taker.frames == lines

    play(scenario)


def test_answers_are_never_read_slowly() -> None:
    async def scenario(intake: Intake, taker: Taker, pipe: Pipe) -> None:
        for _ in range(100):
            intake.data_received(b"{}\n" * (FRAMES_PER_TURN - 1))
            assert pipe.reading
        intake.data_received(b"{" + b"x" * 2 * LARGE_BYTES + b"}\n")
        assert pipe.reading, "nobody else is there"
        assert len(taker.frames) == 100 * (FRAMES_PER_TURN - 1) + 1

    play(scenario)


@pytest.mark.parametrize(
    ("data", "size_bytes"),
    [(b"x\n", 2), (b"\n" * 65536, 65536), (b"\r\n" * 100, 200)],
)
def test_what_is_of_no_use_is_read_at_its_share_of_the_time(data: bytes, size_bytes: int) -> None:
    async def scenario(intake: Intake, taker: Taker, pipe: Pipe) -> None:
        sent = 0
        while pipe.reading:
            intake.data_received(data)
            sent += size_bytes
            assert len(taker.frames) <= BURST_FRAMES + 1
            assert sent < 10 * 1024 * 1024
        assert 0 < pause_s(intake) < 1

    play(scenario)


def test_a_line_without_end_is_read_at_its_share_of_the_time() -> None:
    async def scenario(intake: Intake, taker: Taker, pipe: Pipe) -> None:
        sent = 0
        while pipe.reading:
            intake.data_received(b"x" * 65536)
            sent += 65536
            assert sent < 20 * 1024 * 1024
        assert sent > 4 * 1024 * 1024, "a long message that may still end is none"
        assert taker.frames == []

    play(scenario)


def test_large_results_wait_for_others_who_call() -> None:
    async def scenario(intake: Intake, taker: Taker, pipe: Pipe) -> None:
        taker.alone = False
        large = b"{" + b"x" * 3 * 1024 * 1024 + b"}\n"
        while pipe.reading:
            intake.data_received(large)
            assert len(taker.frames) < 10
        assert pause_s(intake) > 0

    play(scenario)


def test_no_frame_is_taken_once_it_was_stopped() -> None:
    async def scenario(intake: Intake, taker: Taker, pipe: Pipe) -> None:
        intake.data_received(b"{}\n" * 2 * FRAMES_PER_TURN)
        intake.stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        intake.data_received(b"{}\n")
        assert len(taker.frames) == FRAMES_PER_TURN
        assert not pipe.reading

    play(scenario)


def test_pace_lets_a_share_of_the_time_be_spent_in_the_long_run() -> None:
    account, now_s, spent_s = pace.Pace(), 0.0, 0.0
    while now_s < 100:
        spent_s += 0.001
        now_s += max(0.001, account.charge(0.001, now_s))
    assert spent_s == pytest.approx(100 * pace.SHARE + pace.BURST_S, rel=0.02)
