"""What was said, found again only where it would be said again word for word."""

from dataclasses import replace

import pytest
import torch

from see_lightning.experts import files
from see_lightning.experts.recall import Entry, Recall, Recollection, Said
from tests.experts import small

SAID = Said("pos", 1.5, 0.25, "Lima", False)


def test_a_key_changes_with_all_that_an_answer_hangs_on():
    recall = Recall("template", "fp32")
    key = recall.key("voice", [1, 23], 8)
    assert recall.key("voice", [1, 23], 8) == Recall("template", "fp32").key("voice", [1, 23], 8) == key
    others = [
        recall.key("other", [1, 23], 8), recall.key("voice", [12, 3], 8), recall.key("voice", [1, 23, 4], 8),
        recall.key("voice", [1, 23], 9), Recall("template", "bf16").key("voice", [1, 23], 8),
        Recall("other", "fp32").key("voice", [1, 23], 8), Recall("template").key("fp32", [1, 23], 8),
    ]  # fmt: skip
    assert len({key, *others[:-1]}) == len(others)


def test_of_two_things_said_under_one_key_the_later_one_stays_and_both_are_new():
    recall = Recall()
    decided = replace(SAID, text=None, truncated=None)
    for said in (decided, SAID):
        recall.put(Entry("k", "q", "qa", said))
    assert recall.get("k") == SAID
    assert [entry.said for entry in recall.new] == [decided, SAID]
    assert recall.get("other") is None


def test_what_is_taken_up_again_is_known_and_not_new():
    recall = Recall()
    recall.put_back("k", SAID)
    assert (recall.get("k"), recall.new) == (SAID, [])


def test_voices_are_told_apart_by_their_weights_and_not_by_their_names(tmp_path):
    pool, queries = small.pool("qa", "qg"), small.queries(["one", "two"])
    recall = Recall()
    Recollection(recall, pool, queries).put("qa", 1, SAID)
    Recollection(recall, pool, queries).put(None, 1, replace(SAID, text="base"))
    assert [(entry.id, entry.expert) for entry in recall.new] == [("1", "qa"), ("1", "base")]
    files.save(pool, "qa", tmp_path)
    other = small.pool("of qa's first weights", "other")
    files.load(other, "renamed", tmp_path)
    found = Recollection(recall, other, queries)
    assert found.get("renamed", 1) == SAID
    assert found.get(None, 1).text == "base"
    assert found.get("renamed", 0) == found.get("other", 1) == Said()
    longer = Recollection(recall, other, small.queries(["one", "two"], limit=13))
    assert longer.get("renamed", 1) == Said()


def test_an_expert_whose_weights_moved_is_asked_anew():
    pool, queries, recall = small.pool("qa"), small.queries(["one"]), Recall()
    before = pool.digest("qa")
    Recollection(recall, pool, queries).put("qa", 0, SAID)
    pool.train_only("qa")
    with torch.no_grad():
        list(p for p in pool.parameters() if p.requires_grad)[-1].flatten()[0].add_(1e-6)
    assert pool.digest("qa") != before
    assert Recollection(recall, pool, queries).get("qa", 0) == Said()


def test_without_a_memory_nothing_is_remembered():
    recollection = Recollection(None, small.pool("qa"), small.queries(["one"]))
    recollection.put("qa", 0, SAID)
    assert recollection.get("qa", 0) == Said()


@pytest.mark.parametrize("name", ["tiny", "other"])
def test_base_models_are_told_apart_by_name_and_revision(name):
    one, two = small.pool(), small.pool()
    two.base_id = name
    assert (one.digest(None) == two.digest(None)) == (name == "tiny")
    two.revision = "abc"
    assert one.digest(None) != two.digest(None)
