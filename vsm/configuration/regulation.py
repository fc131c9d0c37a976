"""[coordination], [control] and [intelligence] of vsm.toml, and an integration's range.

Runs in the command line and the supervisor. What S2, S3 and S4 get of it travels with their
`start` as plain values.
"""

from typing import Annotated, Any, Final

import msgspec

from vsm.configuration.units import parse_bytes
from vsm.errors import ConfigurationError

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Priority = Annotated[int, msgspec.Meta(ge=1, le=100)]
Amount = str | int | float

RESOURCES: Final = ("memory", "cpu", "processes")
"""Limits of a worker; the fourth that a budget divides is how many instances pools may have."""
INSTANCES: Final = "instances"
_LEAST: Final = {"memory": ("1M", 2**20), "cpu": ("0.01", 0.01), "processes": ("1", 1)}
_MOST: Final = 2**31 - 1  # cores, or processes: as many as a profile's limit may be
_MOST_RATES: Final = 64


class Rate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast each client may call an integration.

    Args:
        client, calls_itself, integration: patterns, as in a rule of [policy].
        per_second: calls in the long run, 0 for no limit. burst: calls at once.
        wait_s: so long a call waits for its turn; one that would wait longer is refused.
        weight: how many calls go in each turn of the client where several wait for a server.
    """

    client: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] = "*"
    calls_itself: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] = "*"
    integration: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "*"
    per_second: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] = 0.0
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0
    weight: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1


class Coordination(msgspec.Struct, frozen=True, kw_only=True):
    """[coordination]: S2. `reversals` to and fro within `window_s` are an oscillation."""

    rates: tuple[Rate, ...] = ()
    window_s: Seconds = 600.0
    reversals: Annotated[int, msgspec.Meta(ge=2, le=64)] = 6
    cool_down_s: Seconds = 60.0


class ControlDocument(msgspec.Struct, frozen=True, kw_only=True):
    """[control] as written; "" and 0 are no budget."""

    memory: str | int = ""
    cpu: Annotated[float, msgspec.Meta(ge=0, le=4096)] = 0.0
    processes: Annotated[int, msgspec.Meta(ge=0, le=4_194_304)] = 0
    instances: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    interval_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    audit_interval_s: Annotated[float, msgspec.Meta(ge=0, le=604_800)] = 3600.0


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """[control]: S3. `budget` has only what is divided: bytes, cores, tasks, instances of pools."""

    budget: dict[str, float] = {}
    interval_s: float = 10.0
    audit_interval_s: float = 3600.0


class Intelligence(msgspec.Struct, frozen=True, kw_only=True):
    """[intelligence]: S4. A forecast is for the next step; a season is so many steps long."""

    step_s: Annotated[float, msgspec.Meta(ge=0.1, le=86_400)] = 60.0
    season_steps: Annotated[int, msgspec.Meta(ge=2, le=10_000)] = 60


class RangeDocument(msgspec.Struct, frozen=True, kw_only=True):
    """[integrations.NAME.range] as written: least and most of each resource."""

    memory: tuple[Amount, ...] = ()
    cpu: tuple[Amount, ...] = ()
    processes: tuple[Amount, ...] = ()


Range = dict[str, tuple[float, float]]


def compile_control(document: ControlDocument, where: str) -> Control:
    """The budget in base units.

    Raises:
        ConfigurationError: the memory is no size.
    """
    budget = {
        "cpu": float(document.cpu),
        "processes": float(document.processes),
        INSTANCES: float(document.instances),
    }
    if document.memory:
        budget["memory"] = _amount("memory", document.memory, f"{where}.memory")
    return Control(
        budget={name: value for name, value in budget.items() if value > 0},
        interval_s=document.interval_s,
        audit_interval_s=document.audit_interval_s,
    )


def compile_range(document: RangeDocument, where: str) -> Range:
    """Least and most of each resource that is named, in base units.

    Raises:
        ConfigurationError: not two amounts, or the first is above the second.
    """
    found: Range = {}
    for name in RESOURCES:
        pair: tuple[Amount, ...] = getattr(document, name)
        if not pair:
            continue
        if len(pair) != 2:  # noqa: PLR2004 - least and most
            remedy = 'Write ["64M", "512M"].'
            raise ConfigurationError(f"{where}.{name}", "expected the least and the most", remedy)
        least, most = (_amount(name, value, f"{where}.{name}") for value in pair)
        text, bound = _LEAST[name]
        if not bound <= least <= most:
            what = f"expected {text} or more, and the least first"
            raise ConfigurationError(f"{where}.{name}", what)
        found[name] = (least, most)
    return found


def check_coordination(coordination: Coordination, where: str) -> None:
    """Refuse more rates than a snapshot holds.

    Raises:
        ConfigurationError: there are too many.
    """
    if len(coordination.rates) > _MOST_RATES:
        what = f"{len(coordination.rates)} rates, at most {_MOST_RATES} are taken"
        raise ConfigurationError(f"{where}.rates", what, "Use patterns.")


def settings(
    coordination: Coordination, control: Control, intelligence: Intelligence
) -> dict[str, dict[str, Any]]:
    """What each system is told of it, as JSON has it."""
    of_systems = {"system2": coordination, "system3": control, "system4": intelligence}
    found: dict[str, dict[str, Any]] = msgspec.json.decode(msgspec.json.encode(of_systems))
    return found


def _amount(name: str, value: Amount, where: str) -> float:
    if name != "memory":
        if isinstance(value, str):
            raise ConfigurationError(where, f"expected a number, found {value[:40]!r}")
        if not abs(value) <= _MOST:  # nor infinity, nor what is no number
            raise ConfigurationError(where, f"expected a number up to {_MOST:,}")
        return float(value)
    try:
        return float(parse_bytes(str(value)))
    except ValueError as error:
        raise ConfigurationError(where, str(error), 'Write "512M".') from error
