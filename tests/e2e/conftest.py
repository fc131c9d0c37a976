"""A real `vsm up` with real servers: the demo's, which scripts/prepare --demo installs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Running, missing_servers, running

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def demo_arguments() -> list[str]:
    """What leaves the servers out that are not installed; none of PyPI's may be missing."""
    if not (ROOT / "demo/servers/time/bin/python").exists():
        pytest.fail("the demo's servers are not installed. Run scripts/prepare --demo.")
    return [word for name in missing_servers() for word in ("--without", name)]


@pytest.fixture(scope="module")
def demo(demo_arguments: list[str], session_leaves_nothing: None) -> Iterator[Running]:
    """The demo, shared by the tests of a module that do not break it."""
    del session_leaves_nothing
    with running(ROOT / "demo/vsm.toml", *demo_arguments) as vsm:
        vsm.wait_serving()
        yield vsm
        assert vsm.stop() == 0


@pytest.fixture
def time_config(test_leaves_nothing: None, tmp_path: Path) -> Path:
    """A configuration with the time server alone."""
    del test_leaves_nothing
    server = ROOT / "demo/servers/time/bin/mcp-server-time"
    config = tmp_path / "vsm.toml"
    config.write_text(
        f'[integrations.time]\ncommand = ["{server}", "--local-timezone", "UTC"]\n'
        'profile = "python-server"\nrestart = { backoff_initial_s = 0.1 }\n',
        encoding="utf-8",
    )
    return config
