"""[integrations.NAME.resilience] of vsm.toml: when calls are refused, sent again, kept.

Runs in the command line and the supervisor; S1 gets the same values with its row of the
integration.
"""

from typing import Annotated, Final

import msgspec

from vsm.errors import ConfigurationError

_MOST_TOOLS: Final = 256
_NAME_CHARS: Final = 128


class Resilience(msgspec.Struct, frozen=True, kw_only=True):
    """How an integration's failures are dealt with.

    Args:
        failures: in a row, and calls are refused for `open_s`; 0 never.
        successes: of probes in a row, and calls are let through again.
        retry_tools: tools of which the operator knows that calling them twice does no harm.
        max_waiting: calls that wait for room. health_interval_s: between two questions to an
            idle server whether it is alive; 0 never asks.
        call_limit_s: for one call, however much progress it reports.
        keep_arguments: whether dead letters hold what a tool was called with.
    """

    failures: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 5
    successes: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 3
    open_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 60.0
    retry_tools: tuple[str, ...] = ()
    max_waiting: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 256
    health_interval_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    health_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    call_limit_s: Annotated[float, msgspec.Meta(gt=0, le=604_800)] = 3600.0
    keep_arguments: bool = False


def check_resilience(resilience: Resilience, where: str) -> Resilience:
    """Refuse names that no tool can have.

    Raises:
        ConfigurationError: too many, or too long.
    """
    tools = resilience.retry_tools
    if len(tools) > _MOST_TOOLS or any(not 0 < len(name) <= _NAME_CHARS for name in tools):
        what = f"expected at most {_MOST_TOOLS} names of tools as the server calls them"
        raise ConfigurationError(f"{where}.retry_tools", what)
    return resilience
