"""Work for a system that is done at once, or later where it takes long."""

import asyncio
import os
from collections.abc import Iterator

import pytest

from vsm.supervision.paced import BURST_S, MOST_WAITING, SHARE, Paced


@pytest.fixture
def fd() -> Iterator[int]:
    number = os.open("/dev/null", os.O_RDONLY)
    yield number
    os.close(number)


class World:
    """Work that takes a second each, by a clock of its own."""

    def __init__(self, takes_s: float) -> None:
        self.now_s, self.takes_s = 0.0, takes_s
        self.done: list[str] = []
        self.paced = Paced(self._work, lambda: self.now_s)

    def _work(self, name: str, fd: int) -> None:
        os.fstat(fd)
        self.now_s += self.takes_s
        self.done.append(name)


def test_what_takes_little_is_done_at_once_however_much_comes(fd: int) -> None:
    world = World(takes_s=0.001)
    for number in range(200):
        world.paced.take(str(number), fd)
    assert len(world.done) == 200


def test_what_takes_long_leaves_most_of_the_time_to_others_and_the_newest_counts(fd: int) -> None:
    async def main() -> None:
        world = World(takes_s=1.0)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(100):
            world.paced.take("it", fd)
            world.paced.take(f"other {number}", fd)
        assert world.now_s <= BURST_S + 1, "the loop was kept no longer than that"
        assert len(os.listdir("/proc/self/fd")) == before + 100, "one for each name"
        world.paced._next()
        assert world.done[3:] == ["other 1"]
        assert world.paced._timer is not None
        rest_s = world.paced._timer.when() - asyncio.get_running_loop().time()
        assert rest_s > 0.8 / SHARE, "and rests after it"
        world.paced.close()
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(main())


def test_no_number_of_names_takes_all_descriptors(fd: int) -> None:
    async def main() -> None:
        world = World(takes_s=BURST_S + 1)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(3 * MOST_WAITING):
            world.paced.take(str(number), fd)
        assert len(os.listdir("/proc/self/fd")) == before + MOST_WAITING
        world.paced.close()

    asyncio.run(main())
