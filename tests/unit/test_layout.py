"""What docs/architecture.md promises about the modules, read from their syntax trees."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vsm"
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
LONG_LINES = 500
# Runs alone, in a worker, in the server's own interpreter: it can import nothing of vsm.
ZYGOTE = "vsm.processes.zygote_program"
# Imported by everybody: the package itself is a docstring and a version.
FREE = {"vsm"}
# Who may import what of the outside at the top of a module.
# The one way of a pickle: from a program into a confined worker, never back.
PICKLERS = {"vsm.library.work": {"dill"}, "vsm.library.child": {"dill"}}
PURE_FORBIDDEN = {"os", "socket", "time", "subprocess", "asyncio", "select", "signal", "threading"}


def _levels() -> list[tuple[int, str]]:
    """The rows of the table "Import order": level and module pattern."""
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", ARCHITECTURE, re.MULTILINE)
    return [
        (int(level), pattern)
        for level, cell in rows
        for pattern in re.findall(r"`(vsm\.[\w.*]+)`", cell)
    ]


LEVELS = _levels()


def _level(module: str) -> int | None:
    for level, pattern in LEVELS:
        if module == pattern or (
            pattern.endswith(".*") and (module + ".").startswith(pattern[:-1])
        ):
            return level
    return None


def _imports(module: str) -> Iterator[tuple[str, int]]:
    """Every module of vsm that is imported anywhere in `module`, lazily or not."""
    for node in ast.walk(TREES[module]):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "vsm":
                yield _owner(name), node.lineno


def _owner(name: str) -> str:
    """The module in which an imported name lives."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def test_architecture_places_every_module() -> None:
    assert LEVELS
    assert [name for name in MODULES if name not in FREE and _level(name) is None] == []


@pytest.mark.parametrize("module", sorted(set(MODULES) - FREE))
def test_imports_go_downwards_only(module: str) -> None:
    own = _level(module)
    assert own is not None, f"{module} is in no row of the table in docs/architecture.md"
    wrong = []
    for imported, line in _imports(module):
        level = _level(imported)
        if imported in FREE:
            continue
        same_package = imported.rpartition(".")[0] == module.rpartition(".")[0]
        sideways = own == level and (own > 0 or same_package or module.startswith(imported))
        if level is None or (level >= own and not sideways):
            wrong.append(f"line {line}: {imported} (level {level}, own level {own})")
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("vsm.core", "vsm.core"), ("vsm.protocol", "vsm.protocol"), ("vsm.linux", "vsm.linux")],
)
def test_bottom_packages_import_nothing_else_of_vsm(package: str, allowed: str) -> None:
    for module in MODULES:
        if (module + ".").startswith(package + "."):
            others = {name for name, _ in _imports(module) if name not in FREE}
            assert {n for n in others if not (n + ".").startswith(allowed + ".")} == set(), module


@pytest.mark.parametrize(
    "module", sorted(m for m in MODULES if m.startswith(("vsm.core.", "vsm.protocol.")))
)
def test_pure_modules_import_no_io(module: str) -> None:
    assert _outside(module) & PURE_FORBIDDEN == set()


def _outside(module: str) -> set[str]:
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_only_linux_uses_ctypes() -> None:
    users = {module for module in MODULES if "ctypes" in _outside(module)}
    # What attacks the kernel calls it as directly as an attacker would.
    outside = {m for m in users if not (m + ".").startswith(("vsm.linux.", "vsm.attempts."))}
    assert outside == {ZYGOTE}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_is_unpickled_or_evaluated(module: str) -> None:
    assert _outside(module) & {"pickle", "dill", "marshal", "shelve"} == PICKLERS.get(module, set())
    for node in ast.walk(TREES[module]):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        assert name not in {"eval", "exec", "compile", "__import__"}, node.lineno
        # A Connection or a Queue of multiprocess unpickles what the other side wrote.
        assert not re.search(r"\b(Queue|SimpleQueue|JoinableQueue|Manager)$", name) or (
            "asyncio" in name or "queue." in name
        ), f"line {node.lineno}: {name}"
        assert not re.search(r"multiprocess\w*\.(Pipe|connection)", name), node.lineno


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_has_a_docstring_and_a_long_one_says_why(module: str) -> None:
    docstring = ast.get_docstring(TREES[module])
    assert docstring, "a module says what it owns"
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= LONG_LINES or re.search(r"\b(one file|long|table)\b", docstring), (
        f"{lines} lines: split it, or say in its docstring why it is one file"
    )


def test_nobody_waits_for_any_child() -> None:
    """`waitpid(-1)` steals the exit status of somebody else's child."""
    calls = re.compile(r"waitpid\(\s*-1|waitid\(\s*(os\.)?P_ALL")
    users = {n for n, p in MODULES.items() if calls.search(p.read_text(encoding="utf-8"))}
    assert users == {ZYGOTE}, "it is a subreaper, as an init is"


def test_only_a_confined_worker_loads_a_pickle() -> None:
    callers = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and re.fullmatch(r"dill\.loads?", ast.unparse(node.func))
    }
    assert callers == {"vsm.library.child"}
