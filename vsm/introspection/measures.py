"""What `vsm variety` and `vsm board dump` are answered: variety, channels, the boards as they are.

Runs in the supervisor. Reads shared memory and asks S4; computes no entropy itself.
"""

from typing import TYPE_CHECKING, Any, Final

from vsm.board.heartbeat import CHANNEL_BYTES, ChannelRow
from vsm.core import channels
from vsm.errors import VsmError, sound

if TYPE_CHECKING:
    from vsm.supervision.supervisor import Supervisor

FULL: Final = 0.5
"""A channel that is fuller than this, or dropped anything, carries less than it is given."""


async def variety(supervisor: "Supervisor") -> dict[str, Any]:
    """What S4 measured at this moment, and the load of every channel.

    Raises:
        VsmError: S4 does not answer.
    """
    body = await supervisor.systems.query("system4", "variety")
    if body is None:
        raise VsmError("variety", "system 4 does not answer", "See `vsm status`, then try again.")
    rows = [_channel(supervisor, channel) for channel in channels.CHANNELS]
    return {**body, "since_start_s": round(supervisor.systems.demand.age_s, 3), "channels": rows}


async def what_if(supervisor: "Supervisor", demand: str) -> dict[str, Any]:
    """What the requisite ratio would be if a demand class were answered well.

    Raises:
        VsmError: S4 does not answer.
    """
    body = await supervisor.systems.query("system4", "what-if", sound(demand)[:128])
    if body is None:
        raise VsmError("variety", "system 4 does not answer", "See `vsm status`, then try again.")
    return body


def board(supervisor: "Supervisor") -> dict[str, Any]:
    """The demand board, the resource board, the channels' rows and the heartbeats."""
    running = supervisor.systems.running
    beats = {}
    for name, system in running.items():
        beat = system.board.read() if system.board is not None else None
        beats[name] = None if beat is None else vars(beat)
    return {
        "demand": supervisor.systems.demand.dump(),
        "resources": supervisor.regulator.samples.dump(),
        "channel_bytes": CHANNEL_BYTES * len(channels.CHANNELS),
        "channels": [_channel(supervisor, channel) for channel in channels.CHANNELS],
        "heartbeats": beats,
    }


def _channel(supervisor: "Supervisor", channel: channels.Channel) -> dict[str, Any]:
    systems = supervisor.systems
    row = _row(supervisor, channel)
    capacity, waiting = systems.capacity_bytes(channel), systems.queued_bytes(channel)
    fill = max(waiting / capacity, row.queued / row.limit if row else 0.0)
    return {
        "sender": channel.sender,
        "receiver": channel.receiver,
        "carries": channel.carries,
        "messages": row.sent if row else None,
        "messages_s": round(row.rate, 3) if row else None,
        "bits_s": round(channels.most_bits(row.rate_bytes), 1) if row else None,
        "dropped": row.dropped if row else None,
        "queued": row.queued if row else None,
        "queued_limit": row.limit if row else None,
        "queued_bytes": waiting,
        "capacity_bytes": capacity,
        "capacity_bits": channels.most_bits(capacity),
        "fills_in_s": round(capacity / row.rate_bytes, 1) if row and row.rate_bytes > 0 else None,
        "fill": round(fill, 4),
        "sufficient": None if row is None else fill < FULL and not row.dropped,
    }


def _row(supervisor: "Supervisor", channel: channels.Channel) -> ChannelRow | None:
    running = supervisor.systems.running.get(channel.sender)
    if running is None or running.board is None:
        return None
    return running.board.channel(channels.sends(channel.sender).index(channel))
