"""The AppArmor profile that lets an ordinary user's vsm build sandboxes where that is restricted.

From Ubuntu 23.10 on, AppArmor takes the capabilities of a new user namespace away from programs
that no profile allows it, so that an ordinary user's workers get the weaker tier. Pure: the text
and where it belongs; who writes it is `vsm.commands.service`.
"""

from pathlib import Path
from typing import Final

from vsm.errors import ConfigurationError

FOLDER: Final = "etc/apparmor.d"
NAME: Final = "vsm"
MARK: Final = "# Written by `vsm service apparmor`; `vsm service apparmor --remove` removes it."
RESTRICTION: Final = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
MEDIATION: Final = Path("/sys/kernel/security/apparmor/features/namespaces/mask")
_SPECIAL: Final = '"\\?*[]{}^@,'  # apparmor.d(5): globbing, variables, quoting


def is_restricted(setting: Path = RESTRICTION) -> bool:
    """Whether all of this host's programs need a profile for it."""
    return _says(setting).strip() == "1"


def may_restrict(setting: Path = RESTRICTION, mediation: Path = MEDIATION) -> bool:
    """Whether the profile can be of use: kernels without Ubuntu's switch leave it to profiles."""
    return is_restricted(setting) or ("userns_create" in _says(mediation) and not setting.exists())


def _says(setting: Path) -> str:
    try:
        return setting.read_text(encoding="ascii")
    except OSError:
        return ""


def profile(command: str) -> str:
    """The profile of the `vsm` command at an absolute path, which is no symlink.

    `unconfined` as Ubuntu's own profiles for browsers: it takes nothing away, and children keep it.

    Raises:
        ConfigurationError: a path that cannot be written into a profile.
    """
    if not command.startswith("/") or any(c in _SPECIAL or not c.isprintable() for c in command):
        what = f"{command!r} cannot be written into an AppArmor profile"
        raise ConfigurationError("vsm service", what, "Install vsm at a plainer path.")
    return (
        f"{MARK}\n"
        "abi <abi/4.0>,\n"
        "include <tunables/global>\n"
        "\n"
        f'profile {NAME} "{command}" flags=(unconfined) {{\n'
        "  userns,\n"
        "\n"
        "  include if exists <local/vsm>\n"
        "}\n"
    )
