"""A run whose steps are computed in parts is the run that it is otherwise."""

import pytest

from tests.nightly import all_but
from tests.runs import toy
from tests.runs.test_ranks import CALM, SETTINGS, WITHIN_ADAPTERS, outcome


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Where the toy's data and its undisturbed runs lie."""
    return tmp_path_factory.getbasetemp() / "toy"


# Rounding differs; MoRA's comparisons make much of it within thirty steps, unless they are small.
GENTLY = [(*settings, "optim.lr=1e-3") if "method=moram" in settings else settings for settings in WITHIN_ADAPTERS]


@pytest.mark.parametrize("settings", all_but(SETTINGS[:1], [*SETTINGS, *GENTLY]), ids=" ".join)
def test_a_run_in_parts_is_the_same_run_with_the_same_answers_and_metrics(base, tmp_path, settings):
    whole = toy.whole(base, *CALM, *settings)
    parts = toy.run(toy.compose(toy.data_in(base), tmp_path, *CALM, *settings, "optim.max_tokens_per_microbatch=1"))
    assert toy.place_of(parts.directory) == toy.place_of(whole.directory)
    assert outcome(parts.directory) == outcome(whole.directory)
    assert parts.steps == whole.steps
