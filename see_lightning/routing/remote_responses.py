"""Responses of experts that a server computes; they enter the response cache, where routing finds them.

An expert is asked as in this process: a short request decodes its verdict, and where it accepts, a second one continues its
answer behind the indicator, whose tokens the server then has in its prefix cache.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from see_lightning.adapters.response_cache import CachedResponse
from see_lightning.inference.vllm import MOST, Completion, VllmServer
from see_lightning.routing.indicator_trie import IndicatorTrie
from see_lightning.routing.verdicts import Verdict, apply_threshold, read_verdict, strip_indicator
from see_lightning.tasks.batches import Queries


class RemoteResponses:
    """The responses of one run's adapters.

    Args:
        server: that computes them.
        load: adds an adapter to the server if it does not serve it yet, and returns its name there; of None, the base model,
            None.
        text: the text of token ids, as the run's template decodes them.
        counts: costs are added to it: decisions, generations.
    """

    def __init__(
        self,
        server: VllmServer,
        load: Callable[[str | None], str | None],
        text: Callable[[list[int]], str],
        counts: Counter[str],
    ) -> None:
        self.server, self.load, self.text, self.counts = server, load, text, counts

    def plain(self, adapter: str | None, queries: Queries, forced_prefix: Sequence[int] = ()) -> list[Completion]:
        """Answers without a verdict, behind a forced prefix; arguments as ``Generation.generate``."""
        prompts = [[*prompt, *forced_prefix] for prompt in queries.prompts]
        self.counts["generations"] += len(prompts)
        return self.server.complete(self.load(adapter), prompts, queries.limits)

    def responses(
        self,
        adapter: str | None,
        queries: Queries,
        trie: IndicatorTrie | None,
        threshold: float | None,
    ) -> list[CachedResponse]:
        """Verdicts of an expert, and its answers where it accepts and ``queries`` are not to be decided on alone.

        Args:
            adapter: an expert; None is the base model.
            queries: the batch.
            trie: of the indicators; None for an adapter that gives no verdicts.
            threshold: log-odds below which a positive verdict counts as negative; None: there is none.
        """
        if trie is None:
            return [
                CachedResponse(text=self.text(one.ids), truncated=not one.ended) for one in self.plain(adapter, queries)
            ]
        name, prompts, limits = self.load(adapter), queries.prompts, queries.limits
        first = self.server.complete(name, prompts, [trie.longest] * len(prompts), logprobs=MOST)
        odds = self._log_odds(name, prompts, first, trie)
        verdicts = [self._verdict(one, trie) for one in first]
        # A verdict behind blanks needs more tokens than the indicators have.
        open_ = [row for row, verdict in enumerate(verdicts) if verdict is None]
        whole = dict(zip(open_, self._continued(name, prompts, first, open_, limits), strict=True))
        for row, (ids, _) in whole.items():
            verdicts[row] = read_verdict(self.text(ids), trie.indicators)
        found = [verdict or Verdict.NEITHER for verdict in verdicts]
        accepted = [row for row, one in enumerate(found) if apply_threshold(one, odds[row], threshold) is Verdict.POS]
        accepted = [] if queries.only_decide else accepted
        new = [row for row in accepted if row not in whole]
        whole |= dict(zip(new, self._continued(name, prompts, first, new, limits), strict=True))
        self.counts["decisions"] += len(found)
        self.counts["generations"] += len(accepted)
        return [
            CachedResponse(
                verdict=verdict,
                log_odds=odds[row],
                text=strip_indicator(self.text(whole[row][0]), trie.indicators) if row in accepted else None,
                truncated=not whole[row][1] if row in accepted else None,
            )
            for row, verdict in enumerate(found)
        ]

    def _verdict(self, one: Completion, trie: IndicatorTrie) -> Verdict | None:
        verdict = trie.verdict(one.ids)
        return Verdict.NEITHER if verdict is None and one.ended else verdict

    def _continued(
        self,
        name: str | None,
        prompts: Sequence[Sequence[int]],
        first: Sequence[Completion],
        rows: Sequence[int],
        limits: Sequence[int],
    ) -> list[tuple[list[int], bool]]:
        """The whole answers of rows, from the tokens of their verdicts on."""
        going = [row for row in rows if not first[row].ended]
        more = self.server.complete(
            name, [[*prompts[row], *first[row].ids] for row in going], [limits[row] for row in going]
        )
        rest = {row: ([*first[row].ids, *one.ids], one.ended) for row, one in zip(going, more, strict=True)}
        return [rest.get(row, (first[row].ids, True)) for row in rows]

    def _log_odds(
        self, name: str | None, prompts: Sequence[Sequence[int]], first: Sequence[Completion], trie: IndicatorTrie
    ) -> list[float]:
        """Log-odds at the first token in which the indicators differ, whatever the expert wrote, to 4 digits."""
        shared = trie.shared
        given = [
            one.logprobs[len(shared)] if one.ids[: len(shared)] == shared and len(one.logprobs) > len(shared) else {}
            for one in first
        ]
        # A token that is not among the most probable ones is asked for by itself.
        lacking = [(row, token) for row, one in enumerate(given) for token in trie.choice if token not in one]
        told = self.server.logprobs(
            name, [[*prompts[row], *shared] for row, _ in lacking], [token for _, token in lacking]
        )
        for (row, token), value in zip(lacking, told, strict=True):
            given[row][token] = value
        pos, neg = trie.choice
        return [round(one[pos] - one[neg], 4) for one in given]
