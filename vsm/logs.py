"""How the supervisor logs: for people on a terminal, as JSON lines for a journal.

Runs in the supervisor. Foreign text arrives as values, already printable, never as a format.
"""

import logging
import os
import select
import sys
from contextlib import suppress
from typing import Any, Final, Literal, TextIO, cast

import structlog

Style = Literal["auto", "console", "json"]
LEVELS: Final = ("debug", "info", "warning", "error")
PATIENCE_MS: Final = 1000
_PIECE: Final = 400  # characters, of ten bytes at most: a pipe that has room takes 4096
_threshold = logging.INFO


def configure(style: Style = "auto") -> None:
    """Set structlog up once; logs go to stderr.

    Args:
        style: "auto" is JSON under a journal, else the console's form.
    """
    as_json = style == "json" or (style == "auto" and is_journal())
    colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0)
    )
    structlog.configure(
        processors=[
            _drop_below_threshold,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=as_json),
            _make_printable,
            _tell_of_missed,
            structlog.processors.format_exc_info,
            renderer,
        ],
        # The threshold moves at run time; a filtering logger's would be fixed when it is made.
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _stderr)),
        cache_logger_on_first_use=True,
    )


class _Stderr:
    """Nothing fails or waits because of its log.

    A pipe loses its reader or is not read, as by `less`; a disk fills; a terminal goes or is held.

    Attributes:
        missed: how many texts nobody took since the last one that was taken.
    """

    def __init__(self) -> None:
        self.missed = 0
        self._break = ""  # ends a line of which only a part was taken
        self._poll = select.poll()
        self._poll.register(2, select.POLLOUT)

    def write(self, text: str) -> None:
        """Write what is taken now, or soon where all was taken before."""
        text = self._break + text
        for start in range(0, len(text), _PIECE):
            if not self._poll.poll(0 if self.missed else PATIENCE_MS):
                self.missed += 1
                self._break = "\n" if start else self._break
                return
            with suppress(OSError):
                sys.stderr.write(text[start : start + _PIECE])
                sys.stderr.flush()
        self.missed, self._break = 0, ""

    def flush(self) -> None:
        """Done."""


_stderr: Final = _Stderr()


def say(text: str) -> None:
    """A line for people on stderr, beside the log."""
    _stderr.write(f"{text}\n")


def is_journal() -> bool:
    """Whether stderr is the journal's; shells inherit the variable alone: systemd.exec(5)."""
    try:
        stderr = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"


def level() -> str:
    """The lowest level that is written."""
    return logging.getLevelName(_threshold).lower()


def set_level(name: str) -> None:
    """Write `name`, one of LEVELS, and above from now on."""
    global _threshold  # noqa: PLW0603 - one log, one threshold
    _threshold = logging.getLevelNamesMapping()[name.upper()]


def logger() -> Any:  # noqa: ANN401 - structlog's loggers are made at run time
    """The supervisor's logger."""
    return structlog.get_logger()


def _make_printable(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """A reason or a line may quote what is foreign, and a terminal would obey it."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(char if char.isprintable() else "\ufffd" for char in value)
    return event


def _tell_of_missed(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if _stderr.missed:
        event["missed_before"] = _stderr.missed
    return event


def _drop_below_threshold(
    _logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if logging.getLevelNamesMapping().get(method.upper(), logging.ERROR) < _threshold:
        raise structlog.DropEvent
    return event
