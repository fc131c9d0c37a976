"""What integrations need and vsm would not reach as a service, though a shell does.

Runs in `vsm service install`, before anything is started; only looks, as the service's own user.
"""

import os
from collections.abc import Iterator

from vsm.configuration.config import Config, Integration
from vsm.configuration.profile import Profile
from vsm.errors import VsmError
from vsm.service.hardening import DEVICES, READ_ONLY
from vsm.service.unit_files import MANAGER_PATH
from vsm.supervision.provision import needed_by, profile_of


def unreached(config: Config, *, user: bool) -> Iterator[str]:
    """A line for each thing that an enabled integration would lack, and what to do.

    Args:
        config: valid, its profiles too.
        user: under the user's own manager, whose unit takes less away.
    """
    for integration in config.integrations.values():
        if not integration.enabled or integration.remote is not None:
            continue
        profile = profile_of(integration)
        yield from _command(integration, profile)
        if not user:
            yield from _hardened(integration, profile)


def _command(integration: Integration, profile: Profile) -> Iterator[str]:
    """What the start would fail with: the managers' PATH is not this shell's."""
    name, command = integration.name, integration.command[0]
    try:
        _program(integration, profile, MANAGER_PATH)
    except VsmError as error:
        try:
            here = _program(integration, profile, os.environ.get("PATH", ""))
        except VsmError:  # a shell would not help either
            yield f"{name}: the service cannot start it: {error}"
        else:
            yield f"{name}: the service looks for {command} in {MANAGER_PATH} alone:"
            yield f"  write {here} in its command"


def _program(integration: Integration, profile: Profile, path: str) -> str:
    return needed_by(integration, profile, env=integration.env, path=path).executable


def _hardened(integration: Integration, profile: Profile) -> Iterator[str]:
    """What the system's unit takes away (`vsm docs operations`)."""
    name = integration.name
    for path in dict.fromkeys((*integration.write, *profile.files.write)):
        real = os.path.realpath(path)
        if any(os.path.commonpath([top, real]) == top for top in READ_ONLY):
            yield f"{name}: {path} is read-only for the service (ProtectSystem=full): name another"
            yield f"  folder in write, or add ReadWritePaths={path} by `systemctl edit vsm`"
    for device in profile.files.devices:
        if device not in DEVICES:
            yield f"{name}: {device} is closed for the service (ProtectClock=yes): add"
            yield f"  DeviceAllow={device} by `systemctl edit vsm`"
