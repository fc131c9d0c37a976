"""The command that a person types to log in: what a foreign server may put into it."""

import pytest

from vsm.core.login_words import login_command, missing_scope, scope_said


@pytest.mark.parametrize(
    ("challenge", "scope"),
    [
        (
            'Bearer error="insufficient_scope", scope="files:read files:write"',
            "files:read files:write",
        ),
        ('Bearer scope="a.b/c~d+e-f", error=insufficient_scope', "a.b/c~d+e-f"),
        ('Bearer error="invalid_token", scope="a"', ""),
        ('Bearer error="insufficient_scope"', ""),
        ('Bearer error="insufficient_scope", scope="a\'; reboot; \'"', ""),
        ('Bearer error="insufficient_scope", scope="--forget"', ""),
        ('Bearer error="insufficient_scope", scope="a  b"', ""),
        ('Bearer error="insufficient_scope", scope="ä"', ""),
        (f'Bearer error="insufficient_scope", scope="{"a" * 128}"', "a" * 128),
        (f'Bearer error="insufficient_scope", scope="{"a" * 129}"', ""),
        (f'Bearer error="insufficient_scope", scope="{" ".join("a" * 33)}"', ""),
    ],
)
def test_scope_is_plain_words_or_nothing(challenge: str, scope: str) -> None:
    assert missing_scope(challenge) == scope


def said(name: str, client: str, scope: str) -> str:
    return f"far: refused (HTTP 403). Run `{login_command(name, client, scope)}`"


@pytest.mark.parametrize(
    ("lines", "scope"),
    [
        ([], ""),
        (["far: hello"], ""),
        ([said("far", "", "a b"), "far: a farewell was not taken"], "a b"),
        ([said("far", "", "old"), said("far", "", "new")], "new"),
        ([said("far", "", "old"), said("far", "", "")], ""),  # it wants another login altogether
        ([said("far", "", "a"), said("far", "bob", "b"), said("near", "", "c")], "a"),
        ([f"#1: {said('far', '', 'a')}"], "a"),
        ([said("far", "", "a") + " and more"], ""),
        ([said("far", "", "a'; reboot; '")], ""),
    ],
)
def test_scope_is_read_from_what_the_worker_said_last(lines: list[str], scope: str) -> None:
    assert scope_said("far", lines) == scope


def test_command_names_whose_login_it_is() -> None:
    assert login_command("far") == "vsm login far"
    assert login_command("far", "bob", "a b") == "vsm login far --client bob --scope 'a b'"
