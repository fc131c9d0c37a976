"""What the README shows can be typed as it stands."""

import re
import shlex
from pathlib import Path

import pytest
from running import Running

from vsm import cli
from vsm.configuration.config import load_config

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line
]


def test_readme_shows_commands() -> None:
    assert {words[0] for words in COMMANDS} == {"scripts/run", "vsm"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_exists(words: list[str]) -> None:
    if words[0] == "vsm":
        assert words[1] in cli.COMMANDS
    else:
        assert (ROOT / words[0]).stat().st_mode & 0o111


@pytest.mark.parametrize(
    "words",
    [w for w in COMMANDS if w[0] == "vsm" and w[1] in {"status", "tools", "call", "sandbox"}],
    ids=" ".join,
)
def test_command_works_on_the_demo(demo: Running, words: list[str]) -> None:
    done = demo.vsm(*words[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_configuration_in_the_readme_is_valid(tmp_path: Path) -> None:
    (text,) = [block for language, block in BLOCKS if language == "toml"]
    file = tmp_path / "vsm.toml"
    file.write_text(text, encoding="utf-8")
    assert list(load_config(file).integrations) == ["papers"]


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), target
