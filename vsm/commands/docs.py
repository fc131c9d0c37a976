"""`vsm docs [PAGE]`: the documentation of the vsm that is installed here.

Prints files that came with vsm, as they are; PAGE is looked up in their list, never used as a path.
"""

import argparse
import difflib
from pathlib import Path

from vsm.commands.terminal import print_json, print_table
from vsm.errors import ConfigurationError
from vsm.paths import shipped_docs


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `docs`."""
    parser = subparsers.add_parser("docs", help="read the documentation of this vsm")
    parser.add_argument("page", nargs="?", metavar="PAGE", help="configuration, decisions, …")
    parser.add_argument("--json", action="store_true", help="a list of pages, or one with its text")


def run(args: argparse.Namespace) -> int:
    """List the pages, or print one."""
    found = pages()
    if args.page in {None, "decisions"}:
        chosen = args.page is not None
        _list({n: p for n, p in found.items() if n.startswith("decisions/") == chosen}, args)
        return 0
    name = args.page.removeprefix("docs/").removesuffix(".md")
    if name not in found:
        raise _unknown(name, found)
    text = found[name].read_text(encoding="utf-8")
    if args.json:
        print_json({"page": name, "text": text})
    else:
        print(text, end="")
    return 0


def pages() -> dict[str, Path]:
    """Every page by its name."""
    folder = shipped_docs()
    return {
        str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.md"))
    }


def _list(found: dict[str, Path], args: argparse.Namespace) -> None:
    rows = [(name, _title(path)) for name, path in found.items()]
    if args.json:
        print_json([{"page": name, "title": title} for name, title in rows])
    else:
        print_table(("PAGE", "TITLE"), rows)


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return lines.readline().removeprefix("# ").strip()


def _unknown(name: str, found: dict[str, Path]) -> ConfigurationError:
    near = difflib.get_close_matches(name, found, n=1)
    hint = f"Did you mean `vsm docs {near[0]}`?" if near else "`vsm docs` lists them."
    return ConfigurationError("vsm docs", f"no page {name[:60]!r}", hint)
