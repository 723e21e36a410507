"""Queries before the experts: who accepts them, and what is answered, nothing asked twice."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial

import torch

from see_lightning.experts.asking import SURE, Asked, Asking, OwnReading, SharedReading
from see_lightning.experts.opening import IndicatorTree, Opening
from see_lightning.experts.pool import ExpertPool
from see_lightning.experts.recall import Recall, Recollection, Said
from see_lightning.experts.walk import Verdict, Walked, counted, strip_indicator, walk
from see_lightning.models.decode import Row, Writing
from see_lightning.models.kv_cache import Read
from see_lightning.tasks.batches import Queries

Pair = tuple[str | None, int]  # a voice, None for the base model, and a query's row
Reader = Callable[[], Asking]  # reads when it is first needed


class Hearing:
    """One batch of queries and what the experts of a pool say to them.

    A query that is accepted is answered from where the verdict was read, in one batch with whatever else is being written.

    Args:
        pool: the experts.
        words: what they begin with.
        queries: what is asked.
        eos_ids: tokens that end an answer.
        counts: where costs are counted: prefills (prompts read), decisions, generations, new_tokens.
        recall: what was said before; None asks everything anew.
        thresholds: log-odds below which an expert's yes counts as a no; experts without one are taken at their word.
    """

    def __init__(
        self,
        pool: ExpertPool,
        words: IndicatorTree,
        queries: Queries,
        eos_ids: Collection[int],
        counts: Counter[str],
        recall: Recall | None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        self.thresholds = thresholds or {}
        self.pool, self.words, self.queries, self.counts = pool, words, queries, counts
        self.newest_first = pool.names[::-1]
        self.recollection = Recollection(recall, pool, queries)
        self.writing: Writing[Pair] = Writing(pool.speaking, eos_ids, self._is_over)
        self._openings: dict[Pair, Opening] = {}
        self._verdicts: dict[Pair, Verdict | None] = {}
        self._said: dict[Pair, Said] = {}
        whole = list(range(len(queries)))
        # Activated experts share what the base model read, which is held for as many queries as are read together.
        self._sittings = queries.portions(whole) if pool.header_ids else [whole]
        self._start = cache(self._begin)

    def walk(self) -> list[Walked]:
        """Send every query past the experts, newest first, and let the base model answer what nobody accepts.

        Where verdicts alone are wanted, nobody answers.
        """
        walks: list[Walked] = []
        for rows in self._sittings:
            asking = self._reader(rows)

            walked = walk(self.newest_first, len(rows), partial(self._verdicts_of, asking, rows))
            if not self.queries.only_decide:
                self._ask_base(asking, rows, [place for place, one in enumerate(walked) if one.expert is None])
            walks += walked
        self._finish()
        return walks

    def answers(self, walks: Sequence[Walked]) -> list[Said]:
        """What those said with whom the walks ended."""
        return [self._said[one.expert, row] for row, one in enumerate(walks)]

    def ask_everyone(self) -> None:
        """Let every expert decide on every query, whoever else accepted it.

        Unless verdicts alone are wanted, each also answers what it accepts, and the base model answers everything.
        """
        for rows in self._sittings:
            asking, every = self._reader(rows), list(range(len(rows)))
            for expert in self.newest_first:
                self._ask(asking, rows, expert, every)
            if not self.queries.only_decide:
                self._ask_base(asking, rows, every)
        self._finish()

    def leanings(self, expert: str) -> list[float]:
        """How much an expert leans to accepting each query, in nats."""
        for rows in self._sittings:
            self._ask(self._reader(rows), rows, expert, list(range(len(rows))))
        self.writing.make_room(0)
        return [round(self._openings[expert, row].log_odds, 4) for row in range(len(self.queries))]

    def _reader(self, rows: Sequence[int]) -> Reader:
        return cache(lambda: self._asking(rows))

    def _asking(self, rows: Sequence[int]) -> Asking:
        queries = self.queries.select(rows)
        if not self.pool.header_ids:
            return OwnReading(self.pool, self.words, queries, self.counts)
        order = [expert for expert in self.newest_first if any(self._is_new((expert, row)) for row in rows)]
        return SharedReading(
            self.pool,
            self.words,
            queries,
            self.counts,
            order=order,
            start=partial(self._start, self.queries.groups[rows[0]]),
            keep=self.recollection.recall is not None,
        )

    def _begin(self, group: int) -> tuple[int, Read | None]:
        """Let the base model read what the prompts of a group begin with."""
        row = self.queries.groups.index(group)
        return self.pool.begin_as(None, self.queries.alike(row))

    def _is_new(self, pair: Pair) -> bool:
        """Whether something is to be heard that was not heard before."""
        if pair not in self._said:
            self._said[pair] = self.recollection.get(*pair)
        said = self._said[pair]
        refused = said.verdict is not None and self._counted(pair, said.verdict, said.log_odds) is not Verdict.POS
        decided = said.verdict is not None and (refused or self.queries.only_decide)
        return not decided and said.text is None

    def _verdicts_of(self, asking: Reader, rows: Sequence[int], expert: str, places: Sequence[int]) -> list[Verdict]:
        self._ask(asking, rows, expert, places)
        verdicts = []
        for place in places:
            pair: Pair = (expert, rows[place])
            said, opening = self._said[pair], self._openings.get(pair)
            log_odds = opening.log_odds if opening else said.log_odds
            verdicts.append(self._counted(pair, str(said.verdict or self._verdicts[pair]), log_odds))
        return verdicts

    def _counted(self, pair: Pair, verdict: str, log_odds: float | None) -> Verdict:
        """A verdict as it counts."""
        return counted(Verdict(verdict), log_odds, self.thresholds.get(pair[0] or ""))

    def _ask(self, asking: Reader, rows: Sequence[int], expert: str, places: Sequence[int]) -> None:
        new = [place for place in places if self._is_new((expert, rows[place]))]
        for portion in asking().queries.portions(new) if new else ():
            self.writing.make_room(self.queries.rows - len(portion))
            pairs: list[Pair] = [(expert, rows[place]) for place in portion]
            asked = dict(zip(pairs, asking().ask(expert, portion), strict=True))
            self.counts["decisions"] += sum(self._said[pair].verdict is None for pair in asked)
            self._openings |= {pair: one.opening for pair, one in asked.items()}
            self._verdicts |= {pair: one.opening.verdict for pair, one in asked.items()}
            self._go_on(asked)
        # A verdict that takes more tokens than its words have, such as one after blanks, is written out first.
        while any(
            self._verdicts.get((row.voice, row.key[1])) is None for row in self.writing.rows if row.voice == expert
        ):
            self.writing.step()
        for place in new:
            pair: Pair = (expert, rows[place])
            self._verdicts[pair] = self._verdicts[pair] or Verdict.NEITHER  # it ended before its word was whole

    def _go_on(self, asked: dict[Pair, Asked]) -> None:
        """Write on from the openings, in one batch for all that were read together."""
        together: dict[int, list[Pair]] = {}
        for pair, one in asked.items():
            together.setdefault(id(one.read), []).append(pair)
        for pairs in together.values():
            self.writing.join(
                asked[pairs[0]].read,
                [
                    Row(pair, pair[0], list(asked[pair].opening.ids), self.queries.limits[pair[1]] + self.words.longest)
                    for pair in pairs
                ],
                [asked[pair].row for pair in pairs],
                torch.stack([asked[pair].mask_K for pair in pairs]),
            )

    def _ask_base(self, asking: Reader, rows: Sequence[int], places: Sequence[int]) -> None:
        new = [place for place in places if self._is_new((None, rows[place]))]
        for portion in asking().queries.portions(new) if new else ():
            self.writing.make_room(self.queries.rows - len(portion))
            logits_BV, read = asking().base(portion)
            pairs: list[Pair] = [(None, rows[place]) for place in portion]
            self.writing.start(logits_BV, read, [Row(pair, None, [], self.queries.limits[pair[1]]) for pair in pairs])

    def _is_over(self, key: Pair, ids: list[int]) -> bool:
        """Whether an expert need not go on: it refuses, or only its verdict is wanted."""
        if key[0] is None:
            return False
        if self._verdicts[key] is None:
            self._verdicts[key] = self.words.verdict(ids)
        verdict = self._verdicts[key]
        if verdict is None:
            return False
        return self.queries.only_decide or not self._accepts(key, verdict)

    def _accepts(self, pair: Pair, verdict: Verdict | None) -> bool:
        return verdict is not None and self._counted(pair, verdict, self._openings[pair].log_odds) is Verdict.POS

    def _finish(self) -> None:
        """Write everything out and remember it."""
        self.writing.make_room(0)
        for pair, decoded in self.writing.done.items():
            voice, row = pair
            if voice is None and decoded.margin < SURE and not self.pool.is_exact():
                prompt, limit = self.queries.prompts[row], self.queries.limits[row]
                decoded = self.pool.answer_alone(prompt, limit, self.writing.eos_ids)
                self.counts["prefills"] += 1
            text, verdict = self.words.text(decoded.ids), self._verdicts.get(pair)
            answered = voice is None or (self._accepts(pair, verdict) and not self.queries.only_decide)
            opening = self._openings.get(pair)
            said = Said(
                verdict=verdict,
                log_odds=round(opening.log_odds, 4) if opening else None,
                margin=round(opening.margin, 4) if opening else None,
                text=(text if voice is None else strip_indicator(text, self.words.indicators)) if answered else None,
                truncated=not decoded.ended if answered else None,
            )
            self._said[pair] = said
            self.recollection.put(voice, row, said)
            self.counts["generations"] += answered
            self.counts["new_tokens"] += len(decoded.ids)
