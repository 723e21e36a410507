"""The verdict of an expert, decoded in one forward pass.

An expert begins its answer with ``<<pos>>`` or ``<<neg>>``. The tokens of both indicators are processed together with the
prompt as a trie; following the most probable tokens through it gives the greedy verdict that token-by-token decoding gives.

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
        ids: token ids up to the end of the trie.
        path: places in the trie of those ``ids`` that were processed.
        verdict: the decoded verdict; None if it needs more tokens.
        log_odds: logit of the positive less that of the negative indicator, in nats, at the first token in which they differ.
        margin: smallest difference in logits between a token in ``ids`` and the second best.
    """

    ids: tuple[int, ...]
    path: tuple[int, ...]
    verdict: Verdict | None
    log_odds: float
    margin: float


class IndicatorTrie:
    """Both indicators as a trie of tokens. An indicator's last token is compared, but need not be processed.

    Args:
        indicators: the positive and the negative one.
        template: tokenises them.
    """

    def __init__(self, indicators: Indicators, template: PromptTemplate) -> None:
        self.indicators, self.text = indicators, template.text
        words = [tuple(template.target_ids(word)[:-1]) for word in (indicators.pos, indicators.neg)]
        ids: list[int] = []
        parents: list[int] = []
        #: Place and token -> the next place in the trie, None at an indicator's end; -1 is the end of the prompt.
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
        #: Tokens of the longer indicator.
        self.longest = max(map(len, words))
        shared = next((n for n, (p, q) in enumerate(zip(*words, strict=False)) if p != q), None)
        if shared is None:
            raise ValueError(f"{indicators.pos!r} and {indicators.neg!r} differ in no token.")
        #: The tokens with which both begin.
        self.shared = list(words[0][:shared])
        place = -1
        for token in self.shared:
            step = self.leads[place, token]
            assert step is not None
            place = step
        self.fork, self.choice = place, (words[0][shared], words[1][shared])

    def decode_verdicts(self, logits_BCV: Tensor) -> list[DecodedVerdict]:
        """Follow the most probable tokens.

        Args:
            logits_BCV: of the prompt's last token, then of every token of the trie.
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
        """The verdict of generated tokens, or None while the indicator is incomplete."""
        # The replacement character stands for a character whose bytes are incomplete.
        return read_verdict(self.text(ids).rstrip("\ufffd"), self.indicators)
