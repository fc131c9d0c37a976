"""Which commands a zygote can be made of."""

from pathlib import Path

import pytest

from vsm.errors import ConfigurationError
from vsm.processes.zygote import BOOT, zygote_argv

PYTHON = "/srv/bin/python3.11"


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ((PYTHON, "-m", "m", "-c"), (PYTHON, "-c", BOOT, "-m", "m", "-c")),
        ((PYTHON, "-I", "-m", "m"), (PYTHON, "-I", "-c", BOOT, "-m", "m")),
        ((PYTHON, "-W", "ignore", "s.py", "x"), (PYTHON, "-W", "ignore", "-c", BOOT, "s.py", "x")),
    ],
)
def test_options_of_the_interpreter_stay_before_and_the_rest_after(
    command: tuple[str, ...], argv: tuple[str, ...]
) -> None:
    assert zygote_argv(command, where="x") == argv


@pytest.mark.parametrize(
    "command",
    [(PYTHON,), (PYTHON, "-c", "pass"), (PYTHON, "-"), (PYTHON, "-m"), ("/usr/bin/true",)],
)
def test_other_commands_are_refused_with_the_key(command: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        zygote_argv(command, where="integrations.x.command")
    assert caught.value.where == "integrations.x.command"


@pytest.mark.parametrize(
    ("first", "fits"),
    [
        (f"#!{PYTHON}\n", True),
        (f"#! {PYTHON}\n", True),
        ("#!/usr/bin/env python3\n", False),
        ("#!/bin/sh\n", False),
        ("import sys\n", False),
    ],
)
def test_script_is_run_by_the_python_of_its_first_line(
    tmp_path: Path, first: str, *, fits: bool
) -> None:
    script = tmp_path / "server"
    script.write_text(first, encoding="utf-8")
    if fits:
        argv = zygote_argv((str(script), "x"), where="x")
        assert argv == (PYTHON, "-c", BOOT, str(script), "x")
    else:
        with pytest.raises(ConfigurationError):
            zygote_argv((str(script), "x"), where="x")
