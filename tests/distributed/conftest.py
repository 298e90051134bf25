"""The processes that all tests of this folder share."""

import importlib.util
from pathlib import Path

import pytest
from launcher import Processes

#: Tests that need no torch.
WITHOUT = {"test_mpi.py", "test_mpi_extra.py"}
TESTS = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name not in WITHOUT]
collect_ignore = [] if importlib.util.find_spec("torch") else TESTS


@pytest.fixture(scope="session")
def processes():
    """Ranks."""
    started = Processes()
    yield started
    started.stop()
