"""An agent that is only its API, and the command line pointed at it."""

import pytest
from cli_process import call
from fake_agent import serving


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """A FakeAgent on a socket of its own."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("QREP_SOCKET", str(tmp_path / "s"))
    monkeypatch.setenv("QREP_CONFIG_DIR", str(tmp_path / "etc"))
    with serving(tmp_path / "s") as agent:
        yield agent


@pytest.fixture
def qrep(capsys):
    """Calls the command line in this process; an Outcome."""
    return lambda *arguments: call(capsys, *arguments)
