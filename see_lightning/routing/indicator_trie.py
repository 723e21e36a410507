"""How an expert begins: its verdict, read off one pass over the words it may begin with.

An expert writes ``<<pos>>`` or ``<<neg>>`` before all else. So the pieces of both words are read along with the prompt, as
a tree, and the verdict is wherever the most probable tokens lead: the same as decoding them one by one, in one pass.

Letters: B rows, C checked positions, V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor

from see_lightning.inference.kv_cache import Tree
from see_lightning.routing.verdicts import Verdict, read_verdict
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.reconstruct import Indicators


@dataclass(frozen=True, slots=True)
class DecodedVerdict:
    """The first tokens of an expert's greedy answer.

    Args:
        ids: as far as the tree told them.
        path: places in the tree of those among ``ids`` that were read along.
        verdict: what they say; None if that takes more tokens.
        log_odds: how much more probable the yes was than the no, as a difference of logits in nats, at the first token in
            which the two words differ.
        margin: the smallest lead of a token in ``ids`` over the next best, in logits.
    """

    ids: tuple[int, ...]
    path: tuple[int, ...]
    verdict: Verdict | None
    log_odds: float
    margin: float


class IndicatorTrie:
    """Both words as a tree of tokens. The last token of a word is checked but need not be read.

    Args:
        indicators: the words.
        template: their tokens, and what tokens say.
    """

    def __init__(self, indicators: Indicators, template: PromptTemplate) -> None:
        self.indicators, self.text = indicators, template.text
        words = [tuple(template.target_ids(word)[:-1]) for word in (indicators.pos, indicators.neg)]
        ids: list[int] = []
        parents: list[int] = []
        #: Where a token leads from a place in the tree (-1 is the prompt's end): to a place, or None at a word's end.
        self.leads: dict[tuple[int, int], int | None] = {}
        for word in words:
            place = -1
            for token in word[:-1]:
                step = self.leads.get((place, token))
                if step is None:
                    ids.append(token)
                    parents.append(place)
                    step = self.leads[place, token] = len(ids) - 1
                place = step
            self.leads.setdefault((place, word[-1]))
        self.tree = Tree(tuple(ids), tuple(parents))
        #: Most tokens of a word.
        self.longest = max(map(len, words))
        shared = next((n for n, (p, q) in enumerate(zip(*words, strict=False)) if p != q), None)
        if shared is None:
            raise ValueError(f"{indicators.pos!r} and {indicators.neg!r} differ in no token.")
        place = -1
        for token in words[0][:shared]:
            step = self.leads[place, token]
            assert step is not None
            place = step
        self.fork, self.choice = place, (words[0][shared], words[1][shared])

    def decode_verdicts(self, logits_BCV: Tensor) -> list[DecodedVerdict]:
        """Follow the most probable tokens.

        Args:
            logits_BCV: of the prompt's last token and then of every token of the tree.
        """
        top = logits_BCV.float().topk(2, dim=-1)
        tokens, lead = top.indices[..., 0].tolist(), (top.values[..., 0] - top.values[..., 1]).tolist()
        odds = (
            logits_BCV[:, self.fork + 1, self.choice[0]].float() - logits_BCV[:, self.fork + 1, self.choice[1]]
        ).tolist()
        return [self._follow(tokens[row], lead[row], odds[row]) for row in range(len(tokens))]

    def _follow(self, tokens: list[int], lead: list[float], log_odds: float) -> DecodedVerdict:
        ids: list[int] = []
        path: list[int] = []
        place, margin = -1, float("inf")
        while True:
            token = tokens[place + 1]
            ids.append(token)
            margin = min(margin, lead[place + 1])
            step = self.leads.get((place, token))
            if step is None:
                return DecodedVerdict(tuple(ids), tuple(path), self.verdict(ids), log_odds, margin)
            path.append(step)
            place = step

    def verdict(self, ids: list[int]) -> Verdict | None:
        """What generated tokens say, or None while the word is unfinished."""
        # The replacement character stands for a letter of which only some bytes are there yet.
        return read_verdict(self.text(ids).rstrip("\ufffd"), self.indicators)
