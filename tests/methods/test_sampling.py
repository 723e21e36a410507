"""Sampled answers: tokens by their probabilities, and answers by PEFT alone, token by token without cache and batch."""

from collections import Counter
from random import Random

import pytest
import torch

from see_lightning.methods.sampling import drawn_tokens, sampled_answers
from tests.adapters import small

PROMPTS = [small.TEMPLATE.prompt_ids(text) for text in ("sky?", "sea, and a longer one?", "ice ice?")]


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    """Evenly spread numbers draw each token as often as its probability, up to one."""
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 11, generator=draw)
    logits[0, 4] = -torch.inf
    numbers = [(n + 0.5) / 1000 for n in range(1000)]
    for row in logits:
        found = Counter(drawn_tokens(row.expand(1000, -1), numbers))
        for token, share in enumerate(torch.softmax(row, -1).tolist()):
            assert abs(found[token] - 1000 * share) <= 1
    assert drawn_tokens(logits[:1], [0.0]) == [0]
    assert drawn_tokens(logits, [1 - 1e-16, 1 - 2**-53]) == [10, 10]


@pytest.mark.parametrize("activated", [False, True])
def test_answers_are_those_of_a_forward_of_each_row_alone(tmp_path, activated):
    pool, limits = small.pool("a", activated=activated), [1, 9, 5]
    eos = {*range(0, 256, 8)}  # so that some answers end by themselves
    with torch.inference_mode():
        found = sampled_answers(pool, "a", PROMPTS, limits, [Random(n) for n in range(3)], eos)
        model = small.by_peft(pool, "a", tmp_path)
        for row, (prompt, limit) in enumerate(zip(PROMPTS, limits, strict=True)):
            draw, ids = Random(row), list(prompt)
            while len(ids) < len(prompt) + limit and not (len(ids) > len(prompt) and ids[-1] in eos):
                shares = torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)
                aim, token = draw.random(), 0
                while aim >= shares[token]:
                    aim -= shares[token].item()
                    token += 1
                ids.append(token)
            assert found[row] == ids[len(prompt) :]
        (alone,) = sampled_answers(pool, "a", PROMPTS[1:2], limits[1:2], [Random(1)], eos)
    assert alone == found[1]
    assert len(found[0]) == 1


def test_an_answer_has_the_token_that_ends_it():
    pool = small.pool("a")
    with torch.inference_mode():
        (answer,) = sampled_answers(pool, "a", PROMPTS[:1], [50], [Random(0)], {*range(0, 512, 2)})
    *inside, last = answer
    assert last % 2 == 0
    assert all(token % 2 for token in inside)
