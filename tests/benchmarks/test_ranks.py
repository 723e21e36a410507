"""The benchmark of ranks: every query is answered once, by one rank or by two."""

import json

import pytest

from benchmarks import ranks
from tests.runs import toy


@pytest.mark.nightly
def test_two_ranks_answer_what_one_answers(tmp_path, capsys, one_round):
    run = toy.whole(tmp_path, "order.tasks=[sky,sea]").directory
    capsys.readouterr()
    ranks.main([str(run), "--queries", "3", "--repeats", "1", "--force"])
    *table, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert (told["ranks"], told["queries"]) == (2, 6)
    assert told["ranks_over_one"] > 0
    assert any("3 + 3" in line for line in table), "each has its share"
