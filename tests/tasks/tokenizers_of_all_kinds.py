"""Small tokenizers of the kinds that models have, each with a chat template."""

import json
from collections.abc import Iterator, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]
CORPUS = [
    "Tom asks: is it kind? [INST] yes, no [/INST] user assistant system",
    "a < b, c > d / e",
    "Łódź, naïve café",
] * 4
TURNS = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
INST = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }}[/INST]{% endfor %}"


def every_tokenizer() -> Iterator[tuple[str, PreTrainedTokenizerBase]]:
    """By name; all but the last are lossless."""
    yield "byte level", byte_level()
    yield "sentencepiece, Llama 2's", sentencepiece(legacy=True)
    yield "sentencepiece, Mistral's", sentencepiece(legacy=False)
    yield "word piece", word_piece()


def byte_level() -> PreTrainedTokenizerBase:
    """As GPT 2's, Llama 3's, SmolLM2's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return fast(made, TURNS, ["<think>"])


def sentencepiece(*, legacy: bool) -> PreTrainedTokenizerBase:
    """With byte fallback; a blank is added in front of every part of a text (``legacy``), or of the first alone."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if legacy:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        pieces = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    else:
        pieces = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.pre_tokenizer = pieces
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*SPECIAL, *fallback], show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    # Bytes are no special tokens.
    state = json.loads(made.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    made = Tokenizer.from_str(json.dumps(state))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast(made, TURNS if legacy else INST, () if legacy else ("[INST]", "[/INST]"))


def word_piece() -> PreTrainedTokenizerBase:
    """As BERT's: what it does not know is lost, and so are case and blanks."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(special_tokens=SPECIAL, show_progress=False))
    return fast(made, TURNS)


def fast(made: Tokenizer, template: str, extra: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    done = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=template
    )
    done.add_tokens([AddedToken(text, special=text.startswith("["), normalized=False) for text in extra])
    return done
