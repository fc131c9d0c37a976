"""What vsm says of itself to models: shares with intervals, foreign words marked, a name kept."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from vsm.config import load_config
from vsm.core.proportion import wilson
from vsm.errors import ConfigurationError
from vsm.gateway.own_tools import OWN, OwnTools
from vsm.introspection import LEAST_CALLS, _share, foreign


@given(st.integers(1, 2000), st.data())
def test_interval_of_a_share_is_wilsons(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    exact = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_share_needs_evidence() -> None:
    assert _share(LEAST_CALLS - 1, LEAST_CALLS - 1) is None
    found = _share(LEAST_CALLS, LEAST_CALLS)
    assert found is not None
    assert found["share"] == 1.0 == pytest.approx(found["high"])
    assert 0.8 < found["low"] < 1.0


@given(st.text())
def test_foreign_words_are_marked_and_obey_nobody(text: str) -> None:
    said = foreign(text)
    assert said == "" or said.startswith("> ")
    assert said.isprintable()
    assert len(said) <= 302


@pytest.mark.parametrize(
    "table", ["[integrations.vsm]\n", '[integrations.other]\nprefix = "vsm"\n']
)
def test_no_integration_takes_the_name_of_vsms_own_tools(tmp_path: Path, table: str) -> None:
    path = tmp_path / "vsm.toml"
    path.write_text(f'{table}command = ["/bin/cat"]\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match="vsm's own tools"):
        load_config(path)


def test_own_tools_take_no_argument_and_change_nothing() -> None:
    async def consult(what: str) -> None:
        raise AssertionError(what)

    own = OwnTools(consult)
    assert own.surface.prefix == OWN
    tools = [
        {k: json.loads(bytes(v)) for k, v in t.items()} for t in own.surface.lists["tools/list"]
    ]
    assert [tool["name"] for tool in tools] == ["status", "variety", "capabilities", "limitations"]
    for tool in tools:
        assert tool["inputSchema"]["properties"] == {}
        assert tool["annotations"]["readOnlyHint"] is True
