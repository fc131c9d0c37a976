"""Finds what goes to and fro: restarts, limits, sizes; and how long to leave it alone.

Pure. A series of one integration (restarts, its memory limit) oscillates when its direction
turned `reversals` times within `window_s`. It is then damped for a cool-down that doubles with
each time, and released after a cool-down without a turn: what is released at one level is found
again only at a higher one, so that finding does not itself go to and fro.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

LONGEST_COOL_DOWN_S: Final = 3600.0
MOST_SERIES: Final = 512
_MOST_TURNS: Final = 64

Key: TypeAlias = tuple[str, str]
"""An integration and what of it moves."""


class Terms(NamedTuple):
    """What counts as oscillation."""

    window_s: float = 600.0
    reversals: int = 6
    cool_down_s: float = 60.0


class Swing(NamedTuple):
    """Something moved up (a change above 0) or down."""

    integration: str
    series: str
    change: float
    at_s: float


class Track(NamedTuple):
    """One series.

    Args:
        direction: of its last move, -1, 0 or 1. turns: when the direction changed.
        damped_until_s: None while it is free. times: how often it was damped.
        seen_s: when it moved last.
    """

    direction: int = 0
    turns: tuple[float, ...] = ()
    damped_until_s: float | None = None
    times: int = 0
    seen_s: float = 0.0


Watch: TypeAlias = Mapping[Key, Track]


class Damped(NamedTuple):
    """From now on this is to be left alone, or slowed."""

    integration: str
    series: str
    reversals: int
    period_s: float
    cool_down_s: float
    times: int


class Released(NamedTuple):
    """It has been quiet for long enough."""

    integration: str
    series: str


Action: TypeAlias = Damped | Released


def step(watch: Watch, swing: Swing, terms: Terms) -> tuple[Watch, list[Action]]:
    """Take one move; what follows from it."""
    key = (swing.integration, swing.series)
    track = watch.get(key)
    direction = (swing.change > 0) - (swing.change < 0)
    if not direction or (track is None and len(watch) >= MOST_SERIES):
        return watch, []
    track = track or Track()
    turned = direction == -track.direction
    since_s = swing.at_s - terms.window_s
    turns = tuple(at_s for at_s in track.turns if at_s > since_s)[-_MOST_TURNS + 1 :]
    track = track._replace(
        direction=direction,
        turns=(*turns, swing.at_s) if turned else turns,
        seen_s=max(track.seen_s, swing.at_s),
    )
    actions: list[Action] = []
    if track.damped_until_s is not None:
        if turned:  # it goes on: the quiet time begins anew
            until_s = swing.at_s + cool_down_s(track.times, terms)
            track = track._replace(damped_until_s=max(until_s, track.damped_until_s))
    elif len(track.turns) >= terms.reversals:
        track, action = _damp(key, track, terms, swing.at_s)
        actions.append(action)
    return {**watch, key: track}, actions


def tick(watch: Watch, now_s: float, terms: Terms) -> tuple[Watch, list[Action]]:
    """Release what was quiet, and forget what has not moved for long."""
    actions: list[Action] = []
    kept: dict[Key, Track] = {}
    for key, track in watch.items():
        if track.damped_until_s is not None and now_s >= track.damped_until_s:
            actions.append(Released(*key))
            kept[key] = track._replace(damped_until_s=None, turns=())
        elif track.damped_until_s is not None or now_s - track.seen_s < _memory_s(terms):
            kept[key] = track
    return kept, actions


def is_damped(watch: Watch, integration: str, series: str) -> bool:
    """Whether it is to be left alone now."""
    track = watch.get((integration, series))
    return track is not None and track.damped_until_s is not None


def cool_down_s(times: int, terms: Terms) -> float:
    """How long it is damped the so-manieth time."""
    longest_s = max(LONGEST_COOL_DOWN_S, terms.cool_down_s)
    return min(longest_s, terms.cool_down_s * 2.0 ** min(times - 1, 32))


def _damp(key: Key, track: Track, terms: Terms, now_s: float) -> tuple[Track, Damped]:
    times = track.times + 1
    pause_s = cool_down_s(times, terms)
    span_s = track.turns[-1] - track.turns[0]
    period_s = 2 * span_s / (len(track.turns) - 1)
    found = Damped(*key, len(track.turns), period_s, pause_s, times)
    return track._replace(damped_until_s=now_s + pause_s, times=times), found


def _memory_s(terms: Terms) -> float:
    """So long a series that rests is remembered, and how often it was damped with it."""
    return max(2 * LONGEST_COOL_DOWN_S, 2 * terms.window_s)
