"""What the tests of whole runs share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """Where the toy's data and its undisturbed runs lie; one place for all tests of a session."""
    return tmp_path_factory.getbasetemp() / "toy"
