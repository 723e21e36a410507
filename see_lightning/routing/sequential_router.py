"""Queries before the experts: who accepts them, and what is answered, nothing asked twice."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial

import torch

from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.response_cache import BatchCache, CachedResponse, ResponseCache
from see_lightning.inference.decoder import BatchDecoder, RowState
from see_lightning.inference.kv_cache import KVCache
from see_lightning.routing.expert_prefill import MIN_MARGIN, ExpertPrefill, PerExpertPrefill, Prefilled, SharedPrefill
from see_lightning.routing.indicator_trie import DecodedVerdict, IndicatorTrie
from see_lightning.routing.verdicts import Route, Verdict, apply_threshold, strip_indicator, walk
from see_lightning.tasks.batches import Queries

Request = tuple[str | None, int]  # a voice, None for the base model, and a query's row
LazyPrefill = Callable[[], ExpertPrefill]  # reads when it is first needed


class SequentialRouter:
    """One batch of queries and what the experts of a pool say to them.

    A query that is accepted is answered from where the verdict was read, in one batch with whatever else is being written.

    Args:
        pool: the experts.
        trie: what they begin with.
        queries: what is asked.
        eos_ids: tokens that end an answer.
        counts: where costs are counted: prefills (prompts read), decisions, generations, new_tokens.
        response_cache: what was said before; None asks everything anew.
        thresholds: log-odds below which an expert's yes counts as a no; experts without one are taken at their word.
    """

    def __init__(
        self,
        pool: ExpertPool,
        trie: IndicatorTrie,
        queries: Queries,
        eos_ids: Collection[int],
        counts: Counter[str],
        response_cache: ResponseCache | None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        self.thresholds = thresholds or {}
        self.pool, self.trie, self.queries, self.counts = pool, trie, queries, counts
        self.newest_first = pool.names[::-1]
        self.batch_cache = BatchCache(response_cache, pool, queries)
        self.decoder: BatchDecoder[Request] = BatchDecoder(pool.use_adapter, eos_ids, self._is_over)
        self._decisions: dict[Request, DecodedVerdict] = {}
        self._verdicts: dict[Request, Verdict | None] = {}
        self._cached: dict[Request, CachedResponse] = {}
        whole = list(range(len(queries)))
        # Activated experts share what the base model read, which is held for as many queries as are read together.
        self._chunks = queries.chunks(whole) if pool.header_ids else [whole]
        self._start = cache(self._prefill_group)

    def walk(self) -> list[Route]:
        """Send every query past the experts, newest first, and let the base model answer what nobody accepts.

        Where verdicts alone are wanted, nobody answers.
        """
        routes: list[Route] = []
        for rows in self._chunks:
            prefill = self._lazy_prefill(rows)

            chunk_routes = walk(self.newest_first, len(rows), partial(self._verdicts_of, prefill, rows))
            if not self.queries.only_decide:
                self._ask_base(prefill, rows, [place for place, one in enumerate(chunk_routes) if one.expert is None])
            routes += chunk_routes
        self._finish()
        return routes

    def answers(self, routes: Sequence[Route]) -> list[CachedResponse]:
        """What those said with whom the walks ended."""
        return [self._cached[one.expert, row] for row, one in enumerate(routes)]

    def decide_all(self) -> None:
        """Let every expert decide on every query, whoever else accepted it.

        Unless verdicts alone are wanted, each also answers what it accepts, and the base model answers everything.
        """
        for rows in self._chunks:
            prefill, every = self._lazy_prefill(rows), list(range(len(rows)))
            for expert in self.newest_first:
                self._ask(prefill, rows, expert, every)
            if not self.queries.only_decide:
                self._ask_base(prefill, rows, every)
        self._finish()

    def log_odds(self, expert: str) -> list[float]:
        """How much an expert leans to accepting each query, in nats."""
        for rows in self._chunks:
            self._ask(self._lazy_prefill(rows), rows, expert, list(range(len(rows))))
        self.decoder.decode_until(0)
        return [round(self._decisions[expert, row].log_odds, 4) for row in range(len(self.queries))]

    def _lazy_prefill(self, rows: Sequence[int]) -> LazyPrefill:
        return cache(lambda: self._make_prefill(rows))

    def _make_prefill(self, rows: Sequence[int]) -> ExpertPrefill:
        queries = self.queries.select(rows)
        if not self.pool.header_ids:
            return PerExpertPrefill(self.pool, self.trie, queries, self.counts)
        order = [expert for expert in self.newest_first if any(self._is_new((expert, row)) for row in rows)]
        return SharedPrefill(
            self.pool,
            self.trie,
            queries,
            self.counts,
            order=order,
            start=partial(self._start, self.queries.groups[rows[0]]),
            keep=self.batch_cache.response_cache is not None,
        )

    def _prefill_group(self, group: int) -> tuple[int, KVCache | None]:
        """Let the base model read what the prompts of a group begin with."""
        row = self.queries.groups.index(group)
        return self.pool.prefill_prefix(None, self.queries.same_group(row))

    def _is_new(self, request: Request) -> bool:
        """Whether something is to be heard that was not heard before."""
        if request not in self._cached:
            self._cached[request] = self.batch_cache.get(*request)
        cached = self._cached[request]
        refused = (
            cached.verdict is not None
            and self._apply_threshold(request, cached.verdict, cached.log_odds) is not Verdict.POS
        )
        decided = cached.verdict is not None and (refused or self.queries.only_decide)
        return not decided and cached.text is None

    def _verdicts_of(
        self, prefill: LazyPrefill, rows: Sequence[int], expert: str, places: Sequence[int]
    ) -> list[Verdict]:
        self._ask(prefill, rows, expert, places)
        verdicts = []
        for place in places:
            request: Request = (expert, rows[place])
            cached, decision = self._cached[request], self._decisions.get(request)
            log_odds = decision.log_odds if decision else cached.log_odds
            verdicts.append(self._apply_threshold(request, str(cached.verdict or self._verdicts[request]), log_odds))
        return verdicts

    def _apply_threshold(self, request: Request, verdict: str, log_odds: float | None) -> Verdict:
        """A verdict as it counts."""
        return apply_threshold(Verdict(verdict), log_odds, self.thresholds.get(request[0] or ""))

    def _ask(self, prefill: LazyPrefill, rows: Sequence[int], expert: str, places: Sequence[int]) -> None:
        new = [place for place in places if self._is_new((expert, rows[place]))]
        for chunk in prefill().queries.chunks(new) if new else ():
            self.decoder.decode_until(self.queries.rows - len(chunk))
            requests: list[Request] = [(expert, rows[place]) for place in chunk]
            prefilled = dict(zip(requests, prefill().prefill_expert(expert, chunk), strict=True))
            self.counts["decisions"] += sum(self._cached[request].verdict is None for request in prefilled)
            self._decisions |= {request: one.decision for request, one in prefilled.items()}
            self._verdicts |= {request: one.decision.verdict for request, one in prefilled.items()}
            self._start_decoding(prefilled)
        # A verdict that takes more tokens than its words have, such as one after blanks, is written out first.
        while any(
            self._verdicts.get((row.adapter, row.key[1])) is None for row in self.decoder.rows if row.adapter == expert
        ):
            self.decoder.step()
        for place in new:
            request: Request = (expert, rows[place])
            self._verdicts[request] = self._verdicts[request] or Verdict.NEITHER  # it ended before its word was whole

    def _start_decoding(self, prefilled: dict[Request, Prefilled]) -> None:
        """Write on from the openings, in one batch for all that were read together."""
        together: dict[int, list[Request]] = {}
        for request, one in prefilled.items():
            together.setdefault(id(one.read), []).append(request)
        for requests in together.values():
            self.decoder.join(
                prefilled[requests[0]].read,
                [
                    RowState(
                        request,
                        request[0],
                        list(prefilled[request].decision.ids),
                        self.queries.limits[request[1]] + self.trie.longest,
                    )
                    for request in requests
                ],
                [prefilled[request].row for request in requests],
                torch.stack([prefilled[request].mask_K for request in requests]),
            )

    def _ask_base(self, prefill: LazyPrefill, rows: Sequence[int], places: Sequence[int]) -> None:
        new = [place for place in places if self._is_new((None, rows[place]))]
        for chunk in prefill().queries.chunks(new) if new else ():
            self.decoder.decode_until(self.queries.rows - len(chunk))
            logits_BV, read = prefill().prefill_base(chunk)
            requests: list[Request] = [(None, rows[place]) for place in chunk]
            self.decoder.start(
                logits_BV, read, [RowState(request, None, [], self.queries.limits[request[1]]) for request in requests]
            )

    def _is_over(self, key: Request, ids: list[int]) -> bool:
        """Whether an expert need not go on: it refuses, or only its verdict is wanted."""
        if key[0] is None:
            return False
        if self._verdicts[key] is None:
            self._verdicts[key] = self.trie.verdict(ids)
        verdict = self._verdicts[key]
        if verdict is None:
            return False
        return self.queries.only_decide or not self._accepts(key, verdict)

    def _accepts(self, request: Request, verdict: Verdict | None) -> bool:
        return (
            verdict is not None
            and self._apply_threshold(request, verdict, self._decisions[request].log_odds) is Verdict.POS
        )

    def _finish(self) -> None:
        """Write everything out and remember it."""
        self.decoder.decode_until(0)
        for request, decoded in self.decoder.done.items():
            adapter, row = request
            if adapter is None and decoded.margin < MIN_MARGIN and not self.pool.is_exact():
                prompt, limit = self.queries.prompts[row], self.queries.limits[row]
                decoded = self.pool.answer_alone(prompt, limit, self.decoder.eos_ids)
                self.counts["prefills"] += 1
            text, verdict = self.trie.text(decoded.ids), self._verdicts.get(request)
            answered = adapter is None or (self._accepts(request, verdict) and not self.queries.only_decide)
            decision = self._decisions.get(request)
            cached = CachedResponse(
                verdict=verdict,
                log_odds=round(decision.log_odds, 4) if decision else None,
                margin=round(decision.margin, 4) if decision else None,
                text=(text if adapter is None else strip_indicator(text, self.trie.indicators)) if answered else None,
                truncated=not decoded.ended if answered else None,
            )
            self._cached[request] = cached
            self.batch_cache.put(adapter, row, cached)
            self.counts["generations"] += answered
            self.counts["new_tokens"] += len(decoded.ids)
