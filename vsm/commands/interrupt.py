"""SIGTERM as an orderly end, for commands that make files and groups which must not stay."""

import signal
from types import FrameType
from typing import NoReturn


def end_in_order_on_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does: through every `finally`."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_signo: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
