"""The tiny model: the same everywhere, and able to write any text."""

import torch

from see_lightning.models.tiny import tiny_model, tiny_tokenizer

TEXTS = [
    "",
    " ",
    "plain",
    "  two  blanks ",
    "line\n\nbreak\ttab",
    "naïve Ünïcödé",
    "日本語",
    "🙂👩‍👩‍👧",
    "<<pos>> a",
    "\x00\x7f",
    "a .  b 's n't",
]


def test_the_weights_hang_on_no_seed_and_drawing_them_moves_none():
    torch.manual_seed(1)
    first = tiny_model().state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = tiny_model().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_text_comes_back_and_takes_one_token_a_byte():
    tokenizer = tiny_tokenizer()
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_model_and_tokenizer_agree_on_their_vocabulary_and_special_tokens():
    tokenizer, config = tiny_tokenizer(), tiny_model().config
    assert len(tokenizer) == config.vocab_size == 259
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)


def test_special_tokens_are_left_out_of_the_text_on_request():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("<s>a</s><pad>", add_special_tokens=False).input_ids
    assert ids[0] == 1
    assert ids[2:] == [2, 0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"
