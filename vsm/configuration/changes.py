"""What differs between two configurations, and what each difference takes.

Pure: runs in the supervisor, which acts on the answer. A key that nobody thought of restarts its
integration, or needs a restart of vsm where it is not an integration's.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import msgspec

from vsm.configuration.config import Config, Integration
from vsm.configuration.profile import Limits, Profile

Action = Literal["start", "stop", "remove", "restart", "update", "policy", "impossible"]
POLICY: Final = "[policy]"
# Taken from the configuration at the moment of use, so that nothing has to stop for them.
LIVE_KEYS: Final = frozenset(
    {
        "start_timeout_s",
        "call_timeout_s",
        "stop_timeout_s",
        "restart",
        "replace",
        "priority",
        "range",
        "resilience",
        "trust",
        "most_argument_bytes",
        "most_argument_depth",
        "strict_arguments",
        "audit_contents_bytes",
    }
)
# How many instances there may be and how long one stays: moves where there are instances anyway.
COUNT_KEYS: Final = frozenset(
    {"pool_min", "pool_max", "max_instances", "spares", "idle_stop_s"},
)
# What a control group can move under a running worker.
LIVE_LIMITS: Final = frozenset(
    {
        *("memory_bytes", "swap_bytes", "processes", "cpu_cores"),
        *("io_read_bytes_s", "io_write_bytes_s"),
    }
)
# What vsm itself looks for.
DETECTED_LIMITS: Final = frozenset({"disk_bytes", "disk_files"})
_SAYS_NOTHING: Final = frozenset({"name", "path", "description"})


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference.

    Args:
        name: the integration's, or for `impossible` the key's; POLICY for the rules.
        keys: what differs.
        limits: of `keys`, those that move under a running worker.
    """

    name: str
    action: Action
    keys: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


def compare(old: Config, new: Config) -> list[Change]:
    """Every difference, in the order in which it is to be acted on."""
    changes = [
        Change(name=key, action="impossible", keys=(key,))
        for key in _outside_integrations(old, new)
    ]
    rules = tuple(f"policy.{key}" for key in differing(old.policy, new.policy))
    if rules:
        changes.append(Change(name=POLICY, action="policy", keys=rules))
    before, after = old.integrations, new.integrations
    changes += [Change(name=name, action="remove") for name in before if name not in after]
    both = [compare_one(before[name], after[name]) for name in after if name in before]
    changes += [change for change in both if change is not None]
    added = [one for name, one in after.items() if name not in before]
    changes += [Change(name=one.name, action="start" if one.enabled else "update") for one in added]
    return changes


def with_profile(change: Change | None, name: str, old: Profile, new: Profile) -> Change | None:
    """The change of an integration whose profile may have been edited as well."""
    keys = [key for key in differing(old, new) if key not in _SAYS_NOTHING]
    limits = differing(old.limits, new.limits) if "limits" in keys else []
    live = LIVE_LIMITS | DETECTED_LIMITS
    moved = [key for key in limits if key in live]
    fixed = [f"profile.{key}" for key in keys if key != "limits"]
    fixed += [f"profile.limits.{key}" for key in limits if key not in live]
    if not fixed and not moved:
        return change
    base = change or Change(name=name, action="update")
    if base.action not in {"update", "restart"}:
        return base
    return replace(
        base,
        action="restart" if fixed else base.action,
        keys=(*base.keys, *fixed, *(f"profile.limits.{key}" for key in moved)),
        limits=tuple(moved),
    )


def differing(old: msgspec.Struct, new: msgspec.Struct) -> list[str]:
    """The fields in which two structs of a kind differ."""
    fields: tuple[str, ...] = old.__struct_fields__
    return [name for name in fields if _value(old, name) != _value(new, name)]


def movable(limits: Limits) -> dict[str, Any]:
    """The part of limits that a control group holds."""
    return {key: _value(limits, key) for key in sorted(LIVE_LIMITS)}


def compare_one(old: Integration, new: Integration) -> Change | None:
    """The difference between two entries of one integration."""
    keys = tuple(differing(old, new))
    if not keys:
        return None
    if old.enabled != new.enabled:
        return Change(name=new.name, action="start" if new.enabled else "stop", keys=keys)
    live = LIVE_KEYS | COUNT_KEYS if old.has_instances and new.has_instances else LIVE_KEYS
    return Change(name=new.name, action="update" if live.issuperset(keys) else "restart", keys=keys)


def _outside_integrations(old: Config, new: Config) -> list[str]:
    keys = []
    for field in differing(old, new):
        if field in {"integrations", "path", "policy"}:
            continue
        before, after = _value(old, field), _value(new, field)
        inner = differing(before, after) if isinstance(before, msgspec.Struct) else []
        keys += [f"{field}.{key}" for key in inner] or [field]
    return keys


def _value(struct: msgspec.Struct, name: str) -> Any:  # noqa: ANN401 - any field's
    return getattr(struct, name)
