"""What the tests of benchmarks share: their numbers do not hang on who else uses the machine."""

import pytest
import torch

from benchmarks import timing


@pytest.fixture(autouse=True)
def _same_threads():
    """A benchmark sets the number of torch's threads; other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_round(monkeypatch):
    """A quiet machine, so that one round is enough for who wants one sample."""
    monkeypatch.setattr(timing, "others_share", lambda before, after: 0.0)
