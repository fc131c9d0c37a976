"""What a run came to. Pure: decides the cause from what the kernel and the worker said."""

import signal
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from vsm.errors import VsmError
from vsm.library.values import Answer
from vsm.linux import signals

Cause = Literal["ok", "exit", "signal", "timeout", "memory", "violation", "refused"]


class Outcome(Protocol):
    """A `Result`, or a `Reply` of a pool."""

    @property
    def cause(self) -> Cause:
        """How it ended."""

    @property
    def error(self) -> str:
        """In words, what went wrong."""


class RunError(VsmError):
    """A run did not end well, or a call; raised by `check`."""

    def __init__(self, result: Outcome, where: str = "vsm.run") -> None:
        super().__init__(where, result.error or f"it ended by {result.cause}", "")
        self.result = result


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one confined run ended.

    Args:
        value: what the callable returned; None for an argv.
        stdout: what was written there, up to `output_bytes`.
        stderr: the same.
        cause: "ok" (exit status 0 and, of a callable, a value), "exit" (another status, or an
            exception), "signal", "timeout", "memory" (it met its memory limit), "violation" (it
            died of something that its profile denies), "refused" (it returned what cannot be
            taken: the value is neither JSON, bytes nor an array of numbers, or too large).
        error: in words, what went wrong; "" where nothing did.
        status: the exit status, None when a signal ended it.
        signal: that signal, or None.
        tier: "namespaced" or "landlocked"; "" where there was no place for it in its time.
        layers: one `{"name", "state", "detail"}` each: what was in force.
        peak_bytes: the most memory that it used.
        cpu_s: user and system time, with its descendants.
        wall_s: from the call to the result.
        truncated: it wrote more than `output_bytes`.
        refused_calls: system calls that its filter refused, by name, and how often: the
            kernel's word, not the worker's. Empty where the kernel cannot tell.
        egress: what it asked for where its profile's network mode is `proxy`: host → `asked`,
            `allowed`, `refused`, `sent_bytes`, `received_bytes` and the last `reason`.
    """

    value: Any
    stdout: bytes
    stderr: bytes
    cause: Cause
    error: str
    status: int | None
    signal: int | None
    tier: str
    layers: tuple[dict[str, str], ...]
    peak_bytes: int
    cpu_s: float
    wall_s: float
    truncated: bool
    refused_calls: dict[str, int] = field(default_factory=dict)
    egress: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.cause == "ok"

    def check(self) -> Any:  # noqa: ANN401 - what the callable returned
        """The value; raises RunError if there is none."""
        if not self.ok:
            raise RunError(self)
        return self.value


def judge(
    ended: dict[str, Any], answer: Answer | None, unfit: str, *, expects_value: bool, late: bool
) -> tuple[Cause, str]:
    """The cause of an end, and the words for it.

    Args:
        ended: what the runner saw.
        answer: what the worker said, if it made sense.
        unfit: why it made none.
        expects_value: a callable's run.
        late: its time had passed.
    """
    if ended["status"] != 0:
        return _judge_kill(ended, late=late) or _judge_failure(ended, answer)
    if unfit:
        return "refused", unfit
    if answer and answer.kind == "error":  # sys.exit(0): an end in order, and no value
        return ("exit", answer.text) if expects_value else ("ok", "")
    if answer and answer.kind != "value":
        return "refused", answer.text
    if expects_value and answer is None:
        return "refused", "it ended without a value"
    return "ok", ""


def _judge_kill(ended: dict[str, Any], *, late: bool) -> tuple[Cause, str] | None:
    """By the kernel or by us: no word of the worker counts against these."""
    status, signo = ended["status"], ended["signal"]
    if signo == signal.SIGSYS:
        return "violation", "it was killed for a forbidden system call"
    if ended["oom_kills"] and (signo == signal.SIGKILL or status == 128 + signal.SIGKILL):
        return "memory", "it was killed at its memory limit"
    return ("timeout", "its time was over") if late or ended["limit"] else None


def _judge_failure(ended: dict[str, Any], answer: Answer | None) -> tuple[Cause, str]:
    status, signo = ended["status"], ended["signal"]
    text = answer.text if answer else ""
    if answer and answer.denied == "memory":
        return "memory", text
    if answer and answer.denied == "violation":
        return "violation", text
    if answer and answer.kind == "unfit":
        return "refused", text
    if status is None:
        return "signal", f"it was killed by {signals.name(signo)}"
    return "exit", text or f"exit status {status}"
