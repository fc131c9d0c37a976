"""docs/profiles.md and docs/configuration.md name every key, its default, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from vsm.configuration import clients as config_clients
from vsm.configuration import config, profile
from vsm.core.syscalls import groups
from vsm.paths import shipped_profiles

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| `([a-z_0-9.]+)` \| [^|]+ \|([^|]*)\|", re.MULTILINE)


def documented(text: str) -> dict[str, str]:
    rows = ROW.findall(text)
    assert len(rows) == len(dict(rows)), "a key is documented twice"
    return {key: default.strip().strip("`") for key, default in rows}


def keys_of(model: type[msgspec.Struct], prefix: str = "") -> dict[str, str]:
    """Key → default as TOML writes it; "" for a table, "required" where there is none."""
    keys: dict[str, str] = {}
    for field in msgspec.structs.fields(model):
        kind = get_type_hints(model)[field.name]
        name = f"{prefix}{field.name}"
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            keys |= {name: ""} | keys_of(kind, f"{name}.")
        else:
            keys[name] = _default(field)
    return keys


def _default(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return json.dumps(value)


def test_every_key_of_a_profile_is_documented_with_its_default() -> None:
    text = (DOCS / "profiles.md").read_text().partition("## Keys")[2].partition("## Tiers")[0]
    assert documented(text) == keys_of(profile.ProfileDocument) | {"environment": ""}


def test_every_key_of_the_configuration_is_documented_with_its_default() -> None:
    text = (DOCS / "configuration.md").read_text()
    top = keys_of(config.ConfigDocument)
    keys = {key: default for key, default in top.items() if "." in key}
    one = keys_of(config.IntegrationDocument)
    keys |= {key: default for key, default in one.items() if default}
    keys |= keys_of(config_clients.ClientDocument)
    # These are derived from the rest of the entry, or from who asks.
    found = documented(text)
    assert found.pop("prefix") == "the name"
    assert found.pop("cwd") == "its state or private directory"
    assert found.pop("integrations") == "all"
    assert found.pop("command") == "this or `url"
    assert found.pop("url") == "this or `command"
    assert found.pop("profile") == '"integration"`, or `"remote"'
    assert (found.pop("bearer"), found.pop("oauth")) == ("none", "none")
    assert found.pop("gateway.list_wait_s") == "by the client"
    derived = {"prefix", "cwd", "integrations", "command", "url", "profile", "bearer", "oauth"}
    derived.add("gateway.list_wait_s")
    assert found == {key: value for key, value in keys.items() if key not in derived}


def test_every_layer_and_group_is_documented_and_no_other() -> None:
    text = (DOCS / "profiles.md").read_text()
    layers = text.partition("## Layers")[2].partition("`tier =")[0]
    assert set(re.findall(r"`([a-z_]+)`", layers)) == set(get_args(profile.Layer))
    calls = text.partition("## System calls")[2].partition("Under every profile")[0]
    assert set(re.findall(r"`(@[a-z-]+)`", calls)) == set(groups())


def test_every_shipped_profile_is_documented() -> None:
    table = (DOCS / "profiles.md").read_text().partition("## Shipped profiles")[2]
    named = set(
        re.findall(r"^\| `([a-z0-9-]+)`", table.partition("## Inheritance")[0], re.MULTILINE)
    )
    shipped = {path.stem for path in shipped_profiles().glob("*.toml")}
    assert named == shipped - {f"system{number}" for number in range(2, 6)}
