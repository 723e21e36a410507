"""Tokenisation of prompts and answers in which the user's text never becomes a special token."""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from see_lightning.errors import ConfigError
from see_lightning.files.text import holds_surrogate
from see_lightning.tasks.chat import Piece

STAND_IN = 0xF0000  # the first of 65,534 private-use characters
RULES = ("single_word", "lstrip", "rstrip", "normalized")  # how the tokenizer finds an added token in a text


class Pieces:
    """Tokenises texts and split prompts; only a template's own text may become special tokens.

    A text that does not contain the spelling of a special token gets the tokenizer's usual ids.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._added: dict[int, AddedToken] = dict(tokenizer.added_tokens_decoder)
        self._special = {id_ for id_, token in self._added.items() if token.special}
        # Unknown characters become a special token without its spelling; GPT-2's is its end-of-sequence token as well.
        unknown = tokenizer.unk_token
        self._unknown = None if unknown in (tokenizer.eos_token, tokenizer.bos_token) else unknown
        self._spelled = {id_ for id_ in self._special if self._added[id_].content != self._unknown}
        self._expected: dict[tuple[str, ...], list[int]] = {}
        self._twins: dict[frozenset[int], tuple[Tokenizer, dict[int, str]]] = {}

    def text_ids(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens."""
        ids = self._ids(text)
        if self._spelled.isdisjoint(ids) and not self._holds_unknown(text):
            return ids
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        # The clean-up of some tokenizers removes spaces that belong to the text.
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def ids(self, pieces: Sequence[Piece]) -> list[int]:
        """The token ids of a prompt. The user's text in it can neither end nor begin a turn.

        Args:
            pieces: of the prompt, from a chat template.

        Raises:
            ConfigError: the tokenizer turns a part of the user's text into a special token in any case.
        """
        around = tuple("" if piece.given else piece.text for piece in pieces)
        if around not in self._expected:
            whole = self._ids("".join("a" if piece.given else piece.text for piece in pieces))
            self._expected[around] = [id_ for id_ in whole if id_ in self._added]
        markers = self._spelled.union(id_ for id_ in self._expected[around] if id_ not in self._special)
        expected = _only(markers, self._expected[around])
        ids = self._ids("".join(piece.text for piece in pieces))
        if _only(markers, ids) == expected and not any(p.given and self._holds_unknown(p.text) for p in pieces):
            return ids
        ids = self._ids_apart(pieces, markers | self._special)
        if _only(markers, ids) != expected:
            given = " ".join(piece.text for piece in pieces if piece.given)
            spelling = next((token.content for token in self._added.values() if token.content in given), given[:60])
            raise ConfigError(f"the tokenizer takes {spelling!r} in a query for a token of its own, not for text")
        return ids

    def loss(self, text: str) -> tuple[str, bool]:
        """Compare a text with its decoded token ids.

        Returns:
            A description of the first difference, empty if there is none; and whether the loss goes beyond normalisation,
            which is whitespace, case, and Unicode compositions.
        """
        back = self.text(self.text_ids(text))
        if back == text:
            return "", False
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        normalizer = backend.normalizer if backend else None
        normal = normalizer.normalize_str(text) if normalizer else text
        first = next((n for n, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
        shown = slice(max(0, first - 10), first + 20)
        difference = f"{text[shown]!r} comes back as {back[shown]!r}"
        return difference, _letters(back) not in (_letters(text), _letters(normal))

    def _holds_unknown(self, text: str) -> bool:
        return self._unknown is not None and str(self._unknown) in text

    def _ids(self, text: str) -> list[int]:
        if holds_surrogate(text):
            raise ConfigError("a text holds half a surrogate pair, or bytes that are no UTF-8; it cannot be tokenised")
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _ids_apart(self, pieces: Sequence[Piece], markers: set[int]) -> list[int]:
        """The token ids of a prompt, in which markers are searched in the template's own text only."""
        by_content = {self._added[id_].content: id_ for id_ in markers}
        longest_first = sorted(by_content, key=len, reverse=True)
        any_marker = "|".join(map(re.escape, longest_first)) or "(?!)"
        split = [[piece.text] if piece.given else re.split(f"({any_marker})", piece.text) for piece in pieces]
        # Every second part of the template's text is a marker.
        parts = [(part, n % 2 == 1) for piece_parts in split for n, part in enumerate(piece_parts)]
        if getattr(self.tokenizer, "backend_tokenizer", None) is not None:
            twin, stand_ins = self._twin(frozenset(markers))
            text = "".join(stand_ins[by_content[part]] if is_marker else part for part, is_marker in parts)
            marker_of = {twin.token_to_id(stand_in): id_ for id_, stand_in in stand_ins.items()}
            return [marker_of.get(id_, id_) for id_ in twin.encode(text, add_special_tokens=False).ids]
        ids, text = [], ""
        for part, is_marker in parts:
            if is_marker:
                ids += [*self.text_ids(text), by_content[part]]
            text = "" if is_marker else text + part
        return ids + self.text_ids(text)

    def _twin(self, markers: frozenset[int]) -> tuple[Tokenizer, dict[int, str]]:
        """A copy of the tokenizer that treats markers as text and a private-use character for each as that marker."""
        if markers not in self._twins:
            state = json.loads(self.tokenizer.backend_tokenizer.to_str())
            for token in state["added_tokens"]:
                token["special"] = token["special"] or token["id"] in markers
            twin = Tokenizer.from_str(json.dumps(state))
            twin.no_truncation()
            twin.no_padding()
            twin.encode_special_tokens = True
            stand_ins = {id_: chr(STAND_IN + number) for number, id_ in enumerate(sorted(markers))}
            for id_, stand_in in stand_ins.items():
                rules = {name: getattr(self._added[id_], name) for name in RULES}
                twin.add_tokens([AddedToken(stand_in, special=False, **rules)])
            self._twins[markers] = twin, stand_ins
        return self._twins[markers]


def _only(markers: set[int], ids: Iterable[int]) -> list[int]:
    return [id_ for id_ in ids if id_ in markers]


def _letters(text: str) -> str:
    """A text without the differences that tokenizers normalise: spaces (sentencepiece's are U+2581), case, compositions."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().replace("\u2581", "").split())
