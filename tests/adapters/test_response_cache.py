"""What was said, found again only where it would be said again word for word."""

from dataclasses import replace

import pytest
import torch

from see_lightning.adapters import files
from see_lightning.adapters.response_cache import BatchCache, CachedResponse, CacheEntry, ResponseCache
from tests.adapters import small

SAID = CachedResponse("pos", 1.5, 0.25, "Lima", False)


def test_a_key_changes_with_all_that_an_answer_hangs_on():
    response_cache = ResponseCache("template", "fp32")
    key = response_cache.key("voice", [1, 23], 8)
    assert response_cache.key("voice", [1, 23], 8) == ResponseCache("template", "fp32").key("voice", [1, 23], 8) == key
    others = [
        response_cache.key("other", [1, 23], 8), response_cache.key("voice", [12, 3], 8), response_cache.key("voice", [1, 23, 4], 8),
        response_cache.key("voice", [1, 23], 9), ResponseCache("template", "bf16").key("voice", [1, 23], 8),
        ResponseCache("other", "fp32").key("voice", [1, 23], 8), ResponseCache("template").key("fp32", [1, 23], 8),
    ]  # fmt: skip
    assert len({key, *others[:-1]}) == len(others)


def test_of_two_things_said_under_one_key_the_later_one_stays_and_both_are_new():
    response_cache = ResponseCache()
    decided = replace(SAID, text=None, truncated=None)
    for response in (decided, SAID):
        response_cache.put(CacheEntry("k", "q", "qa", response))
    assert response_cache.get("k") == SAID
    assert [entry.response for entry in response_cache.new] == [decided, SAID]
    assert response_cache.get("other") is None


def test_what_is_taken_up_again_is_known_and_not_new():
    response_cache = ResponseCache()
    response_cache.put_back("k", SAID)
    assert (response_cache.get("k"), response_cache.new) == (SAID, [])


def test_voices_are_told_apart_by_their_weights_and_not_by_their_names(tmp_path):
    pool, queries = small.pool("qa", "qg"), small.queries(["one", "two"])
    response_cache = ResponseCache()
    BatchCache(response_cache, pool, queries).put("qa", 1, SAID)
    BatchCache(response_cache, pool, queries).put(None, 1, replace(SAID, text="base"))
    assert [(entry.id, entry.expert) for entry in response_cache.new] == [("1", "qa"), ("1", "base")]
    files.save(pool, "qa", tmp_path)
    other = small.pool("of qa's first weights", "other")
    files.load(other, "renamed", tmp_path)
    found = BatchCache(response_cache, other, queries)
    assert found.get("renamed", 1) == SAID
    assert found.get(None, 1).text == "base"
    assert found.get("renamed", 0) == found.get("other", 1) == CachedResponse()
    longer = BatchCache(response_cache, other, small.queries(["one", "two"], limit=13))
    assert longer.get("renamed", 1) == CachedResponse()


def test_an_expert_whose_weights_moved_is_asked_anew():
    pool, queries, response_cache = small.pool("qa"), small.queries(["one"]), ResponseCache()
    before = pool.digest("qa")
    BatchCache(response_cache, pool, queries).put("qa", 0, SAID)
    pool.train_only("qa")
    with torch.no_grad():
        list(p for p in pool.parameters() if p.requires_grad)[-1].flatten()[0].add_(1e-6)
    assert pool.digest("qa") != before
    assert BatchCache(response_cache, pool, queries).get("qa", 0) == CachedResponse()


def test_without_a_memory_nothing_is_remembered():
    batch_cache = BatchCache(None, small.pool("qa"), small.queries(["one"]))
    batch_cache.put("qa", 0, SAID)
    assert batch_cache.get("qa", 0) == CachedResponse()


@pytest.mark.parametrize("name", ["tiny", "other"])
def test_base_models_are_told_apart_by_name_and_revision(name):
    one, two = small.pool(), small.pool()
    two.base_id = name
    assert (one.digest(None) == two.digest(None)) == (name == "tiny")
    two.revision = "abc"
    assert one.digest(None) != two.digest(None)
