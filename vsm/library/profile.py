"""`vsm.Profile`: a profile to load, to extend and to explain in a program.

Runs in the program. What a profile is, and what of it is wrong, is decided in
`vsm.configuration.profile`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import msgspec

from vsm.configuration import profile as profiles
from vsm.confinement.explain import Explanation, explain
from vsm.errors import ConfigurationError


class Profile(profiles.Profile, frozen=True, kw_only=True):
    """What a worker may see and use. Made by `load` and `extended`, never changed."""

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Self:
        """Find a profile by its name, or read its file.

        Raises:
            ConfigurationError: not found, malformed, or not to be trusted.
        """
        return cls._of(profiles.load_profile(os.fspath(name_or_path)))

    @classmethod
    def _of(cls, profile: profiles.Profile) -> Self:
        fields = {name: getattr(profile, name) for name in profile.__struct_fields__}
        return cls(**fields)

    def extended(
        self,
        *,
        limits: Mapping[str, Any] | None = None,
        files: Mapping[str, Any] | None = None,
        network: Mapping[str, Any] | None = None,
        syscalls: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        tier: profiles.Tier | None = None,
        may_lack: Sequence[str] = (),
        name: str = "",
    ) -> Self:
        """Another profile, as a file would say it that `extends` this one.

        Lists add to what is inherited ("-entry" takes one away), everything else replaces it.

        Args:
            limits: [limits]; the names of `vsm.run` are understood too, and None for "unlimited".
            files: [files].
            network: [network].
            syscalls: [syscalls].
            environment: [environment].
            tier: the least tier accepted.
            may_lack: layers that may be absent, beside those of this one.
            name: of the new one; this one's and "+" unless given.

        Raises:
            ConfigurationError: something in it is wrong.
        """
        sections = {
            "limits": _limits(limits or {}),
            "files": _plain(files or {}),
            "network": _plain(network or {}),
            "syscalls": _plain(syscalls or {}),
            "environment": _plain(environment or {}),
        }
        table: dict[str, Any] = {key: value for key, value in sections.items() if value}
        if tier is not None:
            table["tier"] = tier
        if may_lack:
            table["may_lack"] = list(may_lack)
        return self._of(profiles.extend_profile(self, table, name or f"{self.name}+"))

    def explain(
        self, argv: Sequence[str] = (), *, tier: profiles.Tier | None = None
    ) -> Explanation:
        """How it would confine a command on this host, step by step, and why; starts nothing.

        Raises:
            ConfinementError: a layer that it requires cannot be applied here.
        """
        return explain(self, argv, tier)


def _limits(limits: Mapping[str, Any]) -> dict[str, Any]:
    named = {profiles.file_key(name): value for name, value in limits.items()}
    if len(named) != len(limits):
        raise ConfigurationError("vsm.Profile", "a limit is named twice", "Name each once.")
    return {name: "unlimited" if value is None else value for name, value in named.items()}


def _plain(section: Mapping[str, Any]) -> dict[str, Any]:
    """Paths as text, sequences as lists, as a file has them."""
    return {key: msgspec.to_builtins(_text(value)) for key, value in section.items()}


def _text(value: Any) -> Any:  # noqa: ANN401 - what a caller wrote
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_text(item) for item in value]
    return value
