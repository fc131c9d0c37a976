"""S2 and S3 together over a budget that is too small for two: what goes to and fro is damped."""

import asyncio
from typing import Any

from system_rig import Rig, of

from vsm.messages import Happened, Move, Moved, ResourceRow, Resources, Start
from vsm.systems.control import Control
from vsm.systems.coordination import Coordination

MIB = 2.0**20
BUDGET = 300 * MIB


class World:
    """Two integrations that are hungry in turn, and the supervisor between S2 and S3."""

    def __init__(self, s2: Rig, s3: Rig) -> None:
        self.s2, self.s3 = s2, s3
        self.control, self.coordination = Control(s3.context), Coordination(s2.context)
        self.control.configure(Start(epoch=1, settings={"budget": {"memory": BUDGET}}))
        terms = {"reversals": 4, "window_s": 600.0, "cool_down_s": 120.0}
        self.coordination.configure(Start(epoch=1, settings=terms))
        self.held = {"a": 150 * MIB, "b": 150 * MIB}
        self.met = {"a": 0.0, "b": 0.0}

    def step(self, at_s: float, hungry: str) -> int:
        """One sample in which one of them fills what it has; how many limits moved."""
        self.met[hungry] += 1
        rows = {name: self._row(name, hungry) for name in self.held}
        self.control.on_resources(Resources(at_s=at_s, rows=rows), [])
        moves = of(Move, self.s3.said())
        for move in moves:
            value = move.limits["memory"]
            change = value - self.held[move.integration]
            self.held[move.integration] = value
            assert sum(self.held.values()) <= BUDGET + 1
            self.control.on_moved(Moved(id=move.id, state="in force"), [])
            self.coordination.on_happened(
                Happened(integration=move.integration, series="memory", change=change, at_s=at_s),
                [],
            )
        for rates in self.s2.said("system2>system3:rates"):
            self.control.on_rates(rates, [])
        return len(moves)

    def _row(self, name: str, hungry: str) -> ResourceRow:
        used = self.held[name] * 0.97 if name == hungry else 40 * MIB
        return ResourceRow(
            floor={"memory": 50 * MIB},
            ceiling={"memory": 280 * MIB},
            limit={"memory": self.held[name]},
            usage={"memory": used},
            pressure={"memory": self.met[name]},
        )


def run(scenario: Any) -> None:
    async def main() -> None:
        s2, s3 = Rig("system2"), Rig("system3")
        try:
            scenario(World(s2, s3))
        finally:
            s2.close()
            s3.close()

    asyncio.run(main())


def test_tug_of_war_over_memory_is_found_and_damped_and_both_keep_enough() -> None:
    def scenario(world: World) -> None:
        # Each is hungry for eight samples, while the other rests.
        moves = [world.step(turn * 10.0, "ab"[turn // 8 % 2]) for turn in range(80)]
        assert sum(moves[:24]) >= 4
        assert world.coordination.found
        (first, *_) = world.coordination.found
        assert first["series"] == "memory"
        assert world.coordination.damped()
        assert sum(moves[60:]) == 0  # both are left alone, although one of them is short
        assert min(world.held.values()) >= 50 * MIB
        assert "not to be moved" in world.control.reason()
        world.coordination.tick(5000.0)
        for rates in world.s2.said("system2>system3:rates"):
            world.control.on_rates(rates, [])
        assert world.coordination.damped() == {}
        assert sum(world.step(5000.0 + turn * 10, "a") for turn in range(8)) > 0

    run(scenario)
