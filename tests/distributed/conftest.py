"""The processes that all tests of this folder share."""

import importlib.util

import pytest
from launcher import Processes

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="session")
def processes():
    """Ranks."""
    started = Processes()
    yield started
    started.stop()
