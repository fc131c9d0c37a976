"""Calls that wait for a person, and what was approved beforehand: the supervisor's desk.

Runs in the supervisor. Owns the clock, the record and the messages around `vsm.core.approvals`.
Time is what has passed since the boot, sleep included: who sets the wall clock prolongs nothing.
What waits dies with the S1 that holds it; what was granted for a while survives a restart of vsm,
read back from the journal, and is forgotten where that cannot be read.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from vsm.core import approvals
from vsm.core.approvals import GrantKey, Pending, Settled, State
from vsm.errors import NotFoundError
from vsm.journal.reader import Filter, JournalReader, Now, is_absent
from vsm.journal.records import MAX_JSON_BYTES
from vsm.messages import Asking, Grant, Grants, Message, Verdict

RULE: Final = "policy.ask"
_MOST_READ: Final = 500
_NS: Final = 10**9


class Record(Protocol):
    """The journal, as far as it is needed here."""

    def decide(
        self,
        subject: str,
        *,
        rule: str,
        inputs: object,
        alternatives: object,
        choice: str,
        source: str = "supervisor",
    ) -> str:
        """Record a decision; its key."""

    def outcome(self, key: str, outcome: object) -> int:
        """Record what came of it."""


class Desk:
    """One supervisor's approvals.

    Args:
        record: the journal. tell: to S1; False where it is not there.
        epoch: of the S1 that runs. may_ask: whether a person can be asked now, else why not.
    """

    def __init__(
        self,
        record: Record,
        *,
        tell: Callable[[Message], bool],
        epoch: Callable[[], int],
        may_ask: Callable[[], str],
    ) -> None:
        self._record = record
        self._tell = tell
        self._epoch = epoch
        self._may_ask = may_ask
        self._state = State()
        self._keys: dict[str, str] = {}  # id → the decision's key
        self._timer: asyncio.TimerHandle | None = None
        self.asked = 0

    # ---- S1 --------------------------------------------------------------------------------

    def asking(self, message: Asking) -> str:
        """S1 holds a call; the id that a person decides by."""
        now_s = steady_s()
        pending = Pending(
            id=secrets.token_hex(3),
            epoch=self._epoch(),
            call=message.id,
            key=GrantKey(
                message.rule_digest, message.client, message.integration, message.asks, message.name
            ),
            until_s=now_s + message.timeout_s,
            details=_details(message),
        )
        self.asked += 1
        self._keys[pending.id] = self._record.decide(
            f"{message.integration}: {message.name}",
            rule=RULE,
            inputs=_recorded(pending),
            alternatives=["approve", "deny"],
            choice="ask a person",
        )
        self._step(approvals.Asked(pending))
        why_not = self._may_ask()
        if why_not and pending in self._state.pending:
            self._step(approvals.Decided(pending.id, approved=False, by=why_not))
        return pending.id

    def withdrawn(self, call: int) -> None:
        """The client no longer waits."""
        self._step(approvals.Withdrawn(self._epoch(), call))

    def lost(self, reason: str) -> None:
        """S1 is gone, with every call that it held."""
        self._step(approvals.Lost(reason))

    # ---- a person --------------------------------------------------------------------------

    def decide(self, approval: str, *, approved: bool, by: str, grant_s: float = 0.0) -> Settled:
        """A person decided.

        Raises:
            NotFoundError: nothing of that id waits.
        """
        try:
            settled = self._step(approvals.Decided(approval, approved, by, grant_s))
        except approvals.UnknownError:
            remedy = "`vsm approvals` lists what waits."
            raise NotFoundError(approval[:40], "nothing of that id waits", remedy) from None
        return next(one for one in settled if one.pending.id == approval)

    def overview(self) -> dict[str, Any]:
        """What waits and what is granted."""
        now_s = steady_s()
        return {
            "pending": [
                {"id": one.id, "left_s": round(one.until_s - now_s, 1), **one.details}
                for one in self._state.pending
            ],
            "grants": [
                {**key._asdict(), "left_s": round(until_s - now_s, 1)}
                for key, until_s in self._state.grants.items()
                if until_s > now_s
            ],
        }

    def grants(self) -> tuple[Grant, ...]:
        """What is granted, as S1 takes it."""
        return tuple(
            Grant(
                rule=key.rule,
                client=key.client,
                integration=key.integration,
                asks=key.kind,
                name=key.name,
                until_s=until_s,
            )
            for key, until_s in self._state.grants.items()
        )

    # ---- steps -----------------------------------------------------------------------------

    def _step(self, event: approvals.Event) -> tuple[Settled, ...]:
        before = self._state.grants
        self._state, settled = approvals.step(self._state, event, steady_s())
        if self._state.grants != before:
            self._tell(Grants(grants=self.grants()))
        for one in settled:
            self._settle(one)
        self._wait()
        return settled

    def _settle(self, settled: Settled) -> None:
        """Tell S1 and the journal."""
        pending = settled.pending
        key = self._keys.pop(pending.id, None)
        if key is not None:
            self._record.outcome(key, _outcome(settled))
        if pending.epoch == self._epoch():
            approved = settled.verdict == "approved"
            reason = f"{settled.verdict}, {settled.by}"
            self._tell(Verdict(id=pending.call, approved=approved, reason=reason))

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_s = approvals.next_s(self._state)
        if next_s is not None:
            delay_s = max(0.0, next_s - steady_s()) + 0.01
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._pass)

    def _pass(self) -> None:
        self._timer = None
        self._step(approvals.Passed())

    # ---- restarts --------------------------------------------------------------------------

    def restore(self, path: Path) -> None:
        """Take back what was granted before vsm ended; what waited then is abandoned.

        Raises:
            VsmError: the journal cannot be read.
        """
        if is_absent(path):
            return
        now = Now.read()
        with JournalReader(path) as reader:
            rows = reader.newest("decisions", Filter(kind=RULE), _MOST_READ)
        grants: dict[GrantKey, float] = {}
        for row in rows:
            if row["outcome"] is None:
                outcome = {"verdict": "abandoned", "by": "vsm ended while it waited"}
                self._record.outcome(row["key"], outcome)
            else:
                grants |= _granted(row, now)
        self._state = approvals.with_grants(self._state, grants, steady_s())
        self._wait()

    def close(self) -> None:
        """The end of vsm: nobody can decide any more."""
        self.lost("vsm ended while it waited")
        if self._timer is not None:
            self._timer.cancel()


def _details(message: Asking) -> dict[str, Any]:
    return {
        "client": message.client,
        "calls_itself": message.calls_itself,
        "integration": message.integration,
        "asks": message.asks,
        "name": message.name,
        "rule": message.rule or "the default",
        "size_bytes": message.size_bytes,
        "sha256": message.digest,
        "shape": message.shape,
        **({"arguments": message.arguments} if message.arguments else {}),
    }


def _recorded(pending: Pending) -> dict[str, Any]:
    """For the journal, of which a column is bounded: who and what are there whatever was passed."""
    told = {"id": pending.id, "key": list(pending.key), **pending.details}
    for name in ("arguments", "shape"):
        if len(json.dumps(told)) > MAX_JSON_BYTES:
            told.pop(name, None)
    return told


def _outcome(settled: Settled) -> dict[str, Any]:
    outcome: dict[str, Any] = {"verdict": settled.verdict, "by": settled.by}
    if settled.grant_until_s is not None:
        outcome["granted_until_s"] = wall_s(settled.grant_until_s)
        outcome["granted_until_steady_s"] = settled.grant_until_s
    return outcome


def steady_s() -> float:
    """Seconds since the boot, sleep included; S1, which is told times by it, reads the same."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall_s(steady: float | None) -> float | None:
    """A time by the steady clock as the wall clock will show it, for people."""
    return None if steady is None else time.time() + steady - steady_s()


def _until_s(row: Mapping[str, Any], now: Now) -> float | None:
    """When a recorded grant ends, by this boot's steady clock; None for whatever is no grant."""
    if now.boot_id and row["boot_id"] == now.boot_id:
        until_s = row["outcome"].get("granted_until_steady_s")
        return until_s if isinstance(until_s, float) else None
    until_s = row["outcome"].get("granted_until_s")
    if not isinstance(until_s, float) or now.wall_ns < row["outcome_at_ns"]:
        return None  # of a clock that was set back nobody knows how long ago it was
    return steady_s() + until_s - now.wall_ns / _NS


def _granted(row: Mapping[str, Any], now: Now) -> dict[GrantKey, float]:
    """The grant of a record of ours; nothing for whatever is none."""
    key, until_s = row["inputs"].get("key"), _until_s(row, now)
    if row["source"] != "supervisor" or until_s is None:
        return {}
    if not isinstance(key, list) or len(key) != len(GrantKey._fields):
        return {}
    if not all(isinstance(part, str) for part in key):
        return {}
    return {GrantKey(*key): until_s}
