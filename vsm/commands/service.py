"""`vsm service install|uninstall|apparmor`: run vsm under systemd, and undo that without a trace.

Runs as root for the system's manager, as the user with --user. Writes only files that carry its
own mark, and never touches one that somebody else wrote.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vsm.commands.service_reach import unreached
from vsm.commands.terminal import print_json
from vsm.configuration.config import Config, load_config
from vsm.control_socket import NotRunningError, connect
from vsm.errors import ConfigurationError, VsmError
from vsm.paths import CONTROL_SOCKET, SYSTEM_CONFIG, USER_CONFIG, home
from vsm.service import apparmor
from vsm.service import unit_files as service
from vsm.service.unit_files import SERVICE, SOCKET, Place
from vsm.supervision.provision import profile_of

COMMAND_TIMEOUT_S = 180.0
_CREDENTIAL_STORES = ("etc/credstore", "run/credstore", "usr/lib/credstore")  # systemd.exec(5)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `service`."""
    parser = subparsers.add_parser("service", help="run vsm under systemd")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    install = actions.add_parser("install", help="write, enable and start the units; idempotent")
    install.add_argument("--config", type=Path, metavar="FILE", help=f"vsm.toml ({SYSTEM_CONFIG})")
    install.add_argument("--no-start", action="store_true", help="write and enable only")
    uninstall = actions.add_parser("uninstall", help="stop, disable and remove the units")
    uninstall.add_argument("--purge", action="store_true", help="the state directory as well")
    allow = actions.add_parser(
        "apparmor", help="let ordinary users' vsm make user namespaces where AppArmor forbids it"
    )
    allow.add_argument("--remove", action="store_true", help="forbid it again")
    for action in (install, uninstall):
        action.add_argument("--user", action="store_true", help="the user's own manager")
    for action in (install, uninstall, allow):
        action.add_argument("--root", type=Path, metavar="DIR", help="an image, not this host")
        action.add_argument("--dry-run", action="store_true", help="show it, do nothing")
        action.add_argument("--json", action="store_true", help="what was, or would be, done")


def run(args: argparse.Namespace) -> int:
    """Do it, step by step, each said."""
    root = args.root.absolute() if args.root is not None else None
    user = args.action != "apparmor" and args.user
    place = service.place(user=user, root=root, home=home())
    work = Work(place, dry=args.dry_run, show=not args.json)
    if not args.dry_run and not user and os.geteuid() != 0:
        whose = "profiles" if args.action == "apparmor" else "units"
        remedy = "Be root." if args.action == "apparmor" else "Use --user, or be root."
        raise VsmError("vsm service", f"the system's {whose} are root's", remedy)
    if args.action == "install":
        _install(work, args)
    elif args.action == "apparmor":
        _apparmor(work, remove=args.remove)
    else:
        _uninstall(work, purge=args.purge)
    if args.json:
        files = {"files": work.files} if args.dry_run else {}
        print_json({"done" if not args.dry_run else "would": work.done, **files})
    elif not work.done:
        print("nothing to do")
    return 0


class Work:
    """What is done, or with `dry` only said; `show` prints what would be written."""

    def __init__(self, place: Place, *, dry: bool, show: bool) -> None:
        self.place = place
        self.dry = dry
        self.done: list[str] = []
        self.files: dict[str, str] = {}
        self._show = show

    def say(self, what: str) -> None:
        """One step, on stderr as it happens."""
        self.done.append(what)
        print(f"{'would ' if self.dry else ''}{what}", file=sys.stderr, flush=True)

    def write(self, path: Path, text: str, *, mark: str = service.MARK) -> bool:
        """Replace a file of ours whose text differs; whether it did."""
        if _read_ours(path, mark) == text:
            return False
        self.say(f"write {path}")
        if self.dry:
            self.files[str(path)] = text
            if self._show:
                print(text)
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o644)
        fresh.replace(path)
        return True

    def remove(self, path: Path, *, mark: str = service.MARK) -> bool:
        """Remove a file of ours; whether there was one."""
        if _read_ours(path, mark) is None:
            return False
        self.say(f"remove {path}")
        if not self.dry:
            path.unlink()
        return True

    def remove_tree(self, path: Path, *, empty: bool = False) -> None:
        """Remove a directory and what is in it, or with `empty` only one that holds nothing."""
        if path.is_symlink() or not path.is_dir() or (empty and any(path.iterdir())):
            return
        self.say(f"remove {path}")
        if not self.dry:
            shutil.rmtree(path)

    def systemctl(self, *words: str, may_fail: bool = False) -> None:
        """Run systemctl; its own words are the error's."""
        remedy = _journal(self.place)
        self.call((*self.place.systemctl, *words), "Run `vsm up` instead.", remedy, may_fail)

    def call(self, command: tuple[str, ...], absent: str, remedy: str, may_fail: bool) -> None:  # noqa: FBT001 - passed on
        """Run a command.

        Args:
            command: its words.
            absent: what to do without that program.
            remedy: what to do when it fails.
            may_fail: what it says is of no interest.
        """
        self.say(" ".join(("run", *command)))
        if self.dry:
            return
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
            )
        except FileNotFoundError:
            raise VsmError(command[0], "there is none", absent) from None
        except subprocess.TimeoutExpired:
            raise VsmError(" ".join(command), "no end in time", remedy) from None
        if done.returncode and not may_fail:
            said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
            raise VsmError(" ".join(command), said, remedy)

    def is_active(self, unit: str) -> bool:
        """Whether the manager runs it."""
        command = (*self.place.systemctl, "is-active", "--quiet", unit)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _install(work: Work, args: argparse.Namespace) -> None:
    path = _config_path(args)
    config = _valid(path)
    if work.place.root is not None:
        config = _at(config, _inside(path, work.place.root))
    command = _command(args.root)
    texts = service.units(config, command=command, user=args.user).files(work.place.directory)
    before = {unit: _read_ours(unit) for unit in texts}  # refuse before the first change
    changed = [unit for unit, text in texts.items() if work.write(unit, text)]
    manager = _manager_runs(work.place)
    try:
        if changed and manager:
            work.systemctl("daemon-reload")
        if changed:
            work.systemctl("enable", SERVICE)
    except BaseException:  # else the next install would find nothing to do
        for unit in changed:
            _put_back(unit, before[unit])
        raise
    if manager and not args.no_start:
        _start(work, changed=bool(changed))
    for line in _lacks(config, work.place):
        print(line, file=sys.stderr)
    if not manager and args.root is None and not args.dry_run:
        print("systemd does not run here: it will start vsm when it does", file=sys.stderr)
    if args.user and apparmor.is_restricted() and not _profile_path(work.place).exists():
        what = "AppArmor forbids user namespaces here: workers get the weaker tier, or do not start"
        print(f"{what}, until root runs `{command} service apparmor`", file=sys.stderr)


def _put_back(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(text, encoding="utf-8")


def _lacks(config: Config, place: Place) -> Iterator[str]:
    """What integrations will not find when the service starts them."""
    for name in _missing_credentials(config, place):
        what = f"credential {name} is missing: put it into /etc/credstore/{name} (mode 0600)"
        yield f"{what}, then restart vsm"
    if place.root is None and (place.user or os.geteuid() == 0):  # nobody else sees what root does
        yield from unreached(config, user=place.user)


def _missing_credentials(config: Config, place: Place) -> list[str]:
    """Those that systemd will not find; a user's own manager looks elsewhere, by its version."""
    root = place.root or Path("/")
    folders = [root / folder for folder in _CREDENTIAL_STORES]
    if place.user or os.geteuid() != 0:  # nobody else may look
        return []
    return [
        name
        for name in service.credentials(config)
        if not any((folder / name).exists() for folder in folders)
    ]


def _start(work: Work, *, changed: bool) -> None:
    running = not work.dry and work.is_active(SERVICE)
    if running and changed:  # the listeners may have changed: both, the service first
        work.systemctl("stop", SERVICE, SOCKET)
    if changed or not running:
        work.systemctl("start", SOCKET, SERVICE)


def _uninstall(work: Work, *, purge: bool) -> None:
    place = work.place
    ours = [place.directory / unit for unit in (SERVICE, SOCKET)]
    present = [path for path in ours if _read_ours(path) is not None]
    manager = _manager_runs(place)
    goes = place.root is None and (present or purge)
    if goes and not (present and manager):  # nothing ends it first
        _refuse_running(_directories(place)[0])
    if present:
        now = ("--now",) if manager else ()
        work.systemctl("disable", *now, SERVICE, SOCKET, may_fail=not manager)
    for path in present:
        work.remove(path)
    if present and manager:
        work.systemctl("daemon-reload")
        work.systemctl("reset-failed", SERVICE, SOCKET, may_fail=True)
    if goes:
        _remove_directories(work, purge=purge, units=bool(present))


def _apparmor(work: Work, *, remove: bool) -> None:
    """Write and load the profile, or unload and remove it; an image's is loaded when it boots."""
    path = _profile_path(work.place)
    here = work.place.root is None
    if remove:
        if here and _read_ours(path, apparmor.MARK) is not None:
            _parser(work, "--remove", path, may_fail=True)
        work.remove(path, mark=apparmor.MARK)
        return
    if here and not work.dry and not apparmor.may_restrict():
        print("AppArmor does not restrict user namespaces here", file=sys.stderr)
        return
    command = _command(work.place.root)
    command = str(Path(command).resolve()) if here else command
    if not work.write(path, apparmor.profile(command), mark=apparmor.MARK) or not here:
        return
    try:
        _parser(work, "--replace", path)
    except VsmError:
        path.unlink(missing_ok=True)
        raise


def _parser(work: Work, action: str, path: Path, *, may_fail: bool = False) -> None:
    absent = "It is in the package apparmor."
    remedy = "The profile needs AppArmor 4 (Ubuntu 23.10, Debian 13, or later)."
    work.call(("apparmor_parser", action, str(path)), absent, remedy, may_fail)


def _profile_path(place: Place) -> Path:
    return (place.root or Path("/")) / apparmor.FOLDER / apparmor.NAME


def _directories(place: Place) -> tuple[Path, Path]:
    """Runtime and state directory."""
    if not place.user:
        return Path("/run/vsm"), Path("/var/lib/vsm")
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}"))
    return runtime / "vsm", home() / ".local/state/vsm"


def _remove_directories(work: Work, *, purge: bool, units: bool) -> None:
    """What the manager made for the units: they preserve the runtime directory themselves.

    Without units it was removed with them.
    """
    runtime, state = _directories(work.place)
    if units:
        if not work.place.user:
            work.remove_tree(SYSTEM_CONFIG.parent, empty=True)
        work.remove_tree(runtime)
    if purge:
        work.remove_tree(state)
    elif state.is_dir():
        print(
            f"kept {state}: the journal and state of servers; --purge removes it", file=sys.stderr
        )


def _refuse_running(runtime: Path) -> None:
    """A vsm that somebody runs without the service keeps its sockets and its state."""
    with suppress(NotRunningError):
        connect(CONTROL_SOCKET, runtime).close()
        raise VsmError("vsm service", f"a vsm runs in {runtime}", "End it by `vsm stop --all`.")


def _config_path(args: argparse.Namespace) -> Path:
    chosen: Path | None = args.config
    if chosen is None:
        system = (args.root or Path("/")) / SYSTEM_CONFIG.relative_to("/")
        chosen = home() / USER_CONFIG if args.user else system
    if not chosen.exists():
        remedy = "Write it (`vsm docs configuration`), or name another by --config."
        raise ConfigurationError(str(chosen), "there is no such file", remedy)
    return chosen.absolute()


def _valid(path: Path) -> Config:
    """A service that cannot start is not installed."""
    config = load_config(path)
    for integration in config.integrations.values():
        profile_of(integration)
    return config


def _inside(path: Path, root: Path) -> Path:
    """Where a file of an image is once that runs."""
    if not path.is_relative_to(root):
        remedy = f"Put it into {root}, and name it there by --config."
        raise ConfigurationError(str(path), "it is not in the image", remedy)
    return Path("/") / path.relative_to(root)


def _at(config: Config, path: Path) -> Config:
    import msgspec

    return msgspec.structs.replace(config, path=str(path))


def _command(root: Path | None) -> str:
    typed = Path(sys.argv[0])
    found = (
        str(typed.absolute()) if typed.name == "vsm" and typed.is_file() else shutil.which("vsm")
    )
    if found is None:
        raise VsmError("vsm service", "cannot find the `vsm` command", "Call it by its full path.")
    if root is not None and Path(found).is_relative_to(root):
        return str(Path("/") / Path(found).relative_to(root))
    return found


def _read_ours(path: Path, mark: str = service.MARK) -> str | None:
    """The text of a file that we wrote; None if there is none.

    Raises:
        VsmError: somebody else wrote it.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise VsmError(str(path), f"cannot be read: {error.strerror}") from error
    if not text.startswith(mark):
        remedy = "Move that file away; your own settings for a unit belong in `systemctl edit vsm`."
        raise VsmError(str(path), "was not written by vsm", remedy)
    return text


def _manager_runs(place: Place) -> bool:
    """sd_booted(3), and for a user also its manager's bus."""
    if place.root is not None or not Path("/run/systemd/system").is_dir():
        return False
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    return not place.user or Path(runtime, "systemd").is_dir()


def _journal(place: Place) -> str:
    return f"See `journalctl {'--user ' if place.user else ''}-u {SERVICE} -u {SOCKET}`."
