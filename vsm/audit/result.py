"""What an audit found, and how it compares with the last accepted one. Pure.

An opening is an attempt that succeeded inside. It is accepted by name and reason in a JSON file;
so are the layers that were in force, since a lost layer may open nothing that another does not
still hold.
"""

from collections.abc import Iterator
from typing import Literal

import msgspec

from vsm.attempts import Attempt

Verdict = Literal["blocked", "open", "unavailable", "broken"]
LIMITS = frozenset({"memory", "processes", "cpu"})


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt.

    Args:
        by: blocked: the layers in force that are each meant to stop it.
        detail: what the kernel answered inside.
        reason: open: why that is expected, "" if it is not.
        control: the same attempt unconfined: "possible" is what proves the block.
    """

    name: str
    group: str
    verdict: Verdict
    by: tuple[str, ...] = ()
    detail: str = ""
    reason: str = ""
    control: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One audit of one profile in one tier, by one user."""

    profile: str
    tier: str
    user: Literal["root", "user"]
    layers: dict[str, str]
    rows: tuple[Row, ...]

    @property
    def key(self) -> str:
        """Its name in the file of accepted results."""
        return f"{self.profile}/{self.tier}/{self.user}"

    @property
    def openings(self) -> dict[str, str]:
        """Name → reason of each attempt that succeeded."""
        return {row.name: row.reason for row in self.rows if row.verdict == "open"}

    @property
    def in_force(self) -> tuple[str, ...]:
        """The layers in force."""
        return tuple(name for name, state in self.layers.items() if state == "in force")

    def count(self, verdict: Verdict) -> int:
        """How many attempts came out so."""
        return sum(row.verdict == verdict for row in self.rows)

    @property
    def proven(self) -> int:
        """How many blocked attempts the control could do."""
        return sum(row.verdict == "blocked" and row.control == "possible" for row in self.rows)


class Accepted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was accepted for one key: the layers in force, and each opening with its reason."""

    layers: tuple[str, ...]
    open: dict[str, str]


def judge(
    attempt: Attempt,
    inside: dict[str, str],
    outside: dict[str, str],
    *,
    tier: str,
    user: str,
    layers: dict[str, str],
) -> Row:
    """Turn two outcomes of one attempt into a row."""
    outcome = inside["outcome"]
    verdict: Verdict = {"refused": "blocked", "possible": "open", "unavailable": "unavailable"}.get(
        outcome, "broken"
    )  # type: ignore[assignment]
    holding = tuple(guard for guard in attempt.guards if layers.get(guard) == "in force")
    control = outside["outcome"]
    if control == "refused" and attempt.control == "root" and user != "root":
        control = "needs root"
    elif control == "refused" and outside["detail"] in ("ENOSYS", "ENOENT"):
        control = "unavailable"
    elif control == "refused":
        control = f"refused ({outside['detail']})"
    return Row(
        name=attempt.name,
        group=attempt.group,
        verdict=verdict,
        by=holding if verdict == "blocked" else (),
        detail=inside["detail"],
        reason=_reason(attempt, tier, user, layers) if verdict == "open" else "",
        control=control,
    )


def compare(result: Result, accepted: Accepted | None) -> Iterator[str]:
    """What is worse than what was accepted; nothing if nothing is."""
    if accepted is None:
        yield f"{result.key}: was never accepted"
        return
    for layer in sorted(set(accepted.layers) - set(result.in_force)):
        yield f"{result.key}: the layer {layer} is no longer in force"
    for name in result.openings:
        if accepted.open.get(name, "?") == "?":
            yield f"{result.key}: {name} is open, and no reason is written for it"
    for row in result.rows:
        if row.verdict == "broken":
            yield f"{result.key}: {row.name} did not run: {row.detail}"


def accept(result: Result, before: dict[str, str]) -> Accepted:
    """The result as accepted; `before` has reasons that somebody wrote, "?" asks for one."""
    reasons = {n: why or before.get(n) or "?" for n, why in sorted(result.openings.items())}
    return Accepted(layers=result.in_force, open=reasons)


def _reason(attempt: Attempt, tier: str, user: str, layers: dict[str, str]) -> str:
    weaker = attempt.weaker.get(tier) or attempt.weaker.get(f"{tier}/{user}")
    if weaker:
        return weaker
    for layer in attempt.guards:
        if layer in LIMITS and layers.get(layer) != "in force":
            return f"the layer {layer} is {layers.get(layer)}, and shown so"
        if layer == "network" and layers.get(layer) == "not required":
            return "the profile gives the host's network"
    return ""
