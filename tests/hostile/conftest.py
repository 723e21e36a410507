"""What the tests of hostile and damaged folders share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """Where the toy's data and its undisturbed run lie."""
    return tmp_path_factory.getbasetemp() / "toy"
