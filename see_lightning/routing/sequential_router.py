"""Routes a batch of queries through experts and generates the answers; cached responses are reused."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from typing import Any

import torch

from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.response_cache import BatchCache, CachedResponse, ResponseCache
from see_lightning.inference.answer_rows import answer_row, make_sampler
from see_lightning.inference.decoder import BatchDecoder, Decoded, DecoderShare, RowState
from see_lightning.inference.kv_cache import CommonPrefix
from see_lightning.routing.expert_prefill import MIN_MARGIN, ExpertPrefill, PerExpertPrefill, Prefilled, SharedPrefill
from see_lightning.routing.indicator_trie import DecodedVerdict, IndicatorTrie
from see_lightning.routing.verdicts import Route, Verdict, apply_threshold, strip_indicator, walk
from see_lightning.tasks.batches import Queries

Request = tuple[str | None, int]  # an expert, or None for the base model, and a query's row
Orders = Sequence[Sequence[str]]  # for each query, the experts that it asks, in order
LazyPrefill = Callable[[], ExpertPrefill]  # prefills at its first call


class SequentialRouter:
    """Verdicts and answers of a pool's experts for one batch of queries.

    The answer to an accepted query continues the KV cache in which the verdict was decoded, in one batch with all other
    answers that are being generated.

    Args:
        pool: the experts.
        trie: the tokens of their indicators.
        queries: the batch.
        eos_ids: tokens that end an answer.
        counts: costs are added to it: prefills, decisions, generations, new_tokens.
        response_cache: responses of frozen experts; None computes every response.
        thresholds: by expert, the log-odds below which a positive verdict counts as negative.
        decoder: shared with others, who step it; None is a decoder of its own.
        never_refusing: experts without verdicts, oldest first. The newest of them answers what no other expert accepts.
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
        decoder: BatchDecoder[Any] | None = None,
        never_refusing: Sequence[str] = (),
    ) -> None:
        self.thresholds = thresholds or {}
        self.pool, self.trie, self.queries, self.counts = pool, trie, queries, counts
        self.newest_first = [name for name in pool.names[::-1] if name not in never_refusing]
        #: The adapter that answers what no expert accepts; None is the base model.
        self.last = never_refusing[-1] if never_refusing else None
        self.plain = (None, self.last)  # these give no verdict
        self.batch_cache = BatchCache(response_cache, pool, queries, plain=never_refusing)
        self.eos_ids = eos_ids
        self.decoder: DecoderShare[Request] = DecoderShare(decoder or BatchDecoder(pool.use_adapter, eos_ids))
        self._decisions: dict[Request, DecodedVerdict] = {}
        self._verdicts: dict[Request, Verdict | None] = {}
        self._cached: dict[Request, CachedResponse] = {}
        whole = list(range(len(queries)))
        # Activated experts share one KV cache of the base model, which is held for one chunk of queries at a time.
        self._chunks = queries.chunks(whole) if pool.header_ids else [whole]
        self._start = cache(self._prefill_group)

    def walk(self, orders: Orders | None = None, *, ask_base: bool = True) -> list[Route]:
        """Route every query to the first expert that accepts it, else to the last adapter, and generate its answer.

        With ``queries.only_decide`` no answer is generated.

        Args:
            orders: for each query, the experts that it asks, in order; None is all of them, newest first.
            ask_base: whether the last adapter answers the queries that no expert accepts.
        """
        routes = self.begin(orders, ask_base=ask_base)
        self._finish()
        return routes

    def begin(self, orders: Orders | None = None, *, ask_base: bool = True) -> list[Route]:
        """Route every query as ``walk`` does, without waiting for the answers; see ``ending``."""
        every = orders or [self.newest_first] * len(self.queries)
        routes: list[Route] = []
        for rows in self._chunks:
            asked = [every[row] for row in rows]
            prefill = self._lazy_prefill(rows, asked)
            chunk_routes = walk(asked, partial(self._verdicts_of, prefill, rows))
            if ask_base and not self.queries.only_decide:
                refused = [place for place, one in enumerate(chunk_routes) if one.expert is None]
                self._ask_without_verdict(self.last, prefill, rows, refused)
            routes += [replace(one, expert=one.expert or self.last) for one in chunk_routes]
        return routes

    def ending(self, routes: Sequence[Route]) -> Iterator[dict[int, CachedResponse]]:
        """By row, the responses of routes that have been completed since the last time; others step the decoder meanwhile.

        Args:
            routes: of ``begin``.
        """
        open_ = dict(enumerate(routes))
        while open_:
            self._collect()
            found = {row: self._cached.get((one.expert, row)) for row, one in open_.items()}
            ended = {row: response for row, response in found.items() if response and response.text is not None}
            for row in ended:
                del open_[row]
            yield ended

    def answers(self, routes: Sequence[Route]) -> list[CachedResponse]:
        """The response of each route's adapter; an empty one where the last adapter was not asked."""
        return [self._cached.get((one.expert, row), CachedResponse()) for row, one in enumerate(routes)]

    def decide_all(self) -> None:
        """Compute the verdict of every expert on every query.

        Without ``queries.only_decide``, each expert also answers the queries that it accepts, and the base model all queries.
        """
        for rows in self._chunks:
            every = list(range(len(rows)))
            prefill = self._lazy_prefill(rows, [self.newest_first] * len(rows))
            for expert in self.newest_first:
                self._ask(prefill, rows, expert, every)
            if not self.queries.only_decide:
                self._ask_without_verdict(None, prefill, rows, every)
        self._finish()

    def log_odds(self, orders: Orders) -> list[list[float]]:
        """Log-odds of accepting a query, in nats, to 4 digits; ``queries.only_decide`` must be set.

        Args:
            orders: for each query, the experts whose log-odds are wanted; none is left out because another one accepts.

        Returns:
            For each query, the log-odds of these experts, in their order.
        """
        for rows in self._chunks:
            asked = [orders[row] for row in rows]
            prefill = self._lazy_prefill(rows, asked)
            for expert in dict.fromkeys(chain(*asked)):
                self._ask(prefill, rows, expert, [place for place, order in enumerate(asked) if expert in order])
        self._finish()
        return [list(self.log_odds_of(row, order)) for row, order in enumerate(orders)]

    def log_odds_of(self, row: int, experts: Sequence[str]) -> tuple[float, ...]:
        """Log-odds of the verdicts that experts have given on a query, in nats, to 4 digits; empty if one is not known."""
        found = [self._given_log_odds((expert, row)) for expert in experts]
        known = tuple(one for one in found if one is not None)
        return known if len(known) == len(found) else ()

    def _given_log_odds(self, request: Request) -> float | None:
        decision, cached = self._decisions.get(request), self._cached.get(request)
        return round(decision.log_odds, 4) if decision else cached.log_odds if cached else None

    def _lazy_prefill(self, rows: Sequence[int], orders: Orders) -> LazyPrefill:
        return cache(lambda: self._make_prefill(rows, orders))

    def _make_prefill(self, rows: Sequence[int], orders: Orders) -> ExpertPrefill:
        given = self.pool, self.trie, self.queries.select(rows), self.counts
        if not self.pool.header_ids:
            return PerExpertPrefill(*given)
        asked = [(expert, row) for row, order in zip(rows, orders, strict=True) for expert in order]
        new = {expert for expert, row in asked if self._is_new((expert, row))}
        wanted = [[expert for expert in order if expert in new] for order in orders]
        start = partial(self._start, self.queries.groups[rows[0]])
        return SharedPrefill(*given, orders=wanted, start=start, keep=self.batch_cache.response_cache is not None)

    def _prefill_group(self, group: int) -> CommonPrefix:
        """Prefill the common prefix of a group's prompts with the base model."""
        row = self.queries.groups.index(group)
        return self.pool.prefill_prefix(None, self.queries.same_group(row))

    def _is_new(self, request: Request) -> bool:
        """Whether a response must be computed because the cache does not have it."""
        if request not in self._cached:
            self._cached[request] = self.batch_cache.get(*request)
        cached = self._cached[request]
        refused = (
            cached.verdict is not None
            and self._apply_threshold(request, cached.verdict, cached.log_odds) is not Verdict.POS
        )
        decided = cached.verdict is not None and (refused or self.queries.only_decide)
        return not decided and cached.text is None

    def _fetch(self, adapter: str | None, rows: Sequence[int]) -> None:
        """Let the run's server, if there is one, compute the responses of an adapter that are not cached."""
        if remote := self.batch_cache.remote:
            new = [row for row in rows if self._is_new((adapter, row))]
            trie = None if adapter in self.plain else self.trie
            found = remote.responses(adapter, self.queries.select(new), trie, self.thresholds.get(adapter or ""))
            for row, response in zip(new, found, strict=True):
                self._cached[adapter, row] = response
                self.batch_cache.put(adapter, row, response)

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
        """The verdict after the expert's threshold."""
        return apply_threshold(Verdict(verdict), log_odds, self.thresholds.get(request[0] or ""))

    def _ask(self, prefill: LazyPrefill, rows: Sequence[int], expert: str, places: Sequence[int]) -> None:
        self._fetch(expert, [rows[place] for place in places])
        new = [place for place in places if self._is_new((expert, rows[place]))]
        for chunk in prefill().queries.chunks(new) if new else ():
            self.decoder.decode_until(self.queries.rows - len(chunk))
            requests: list[Request] = [(expert, rows[place]) for place in chunk]
            prefilled = dict(zip(requests, prefill().prefill_expert(expert, chunk), strict=True))
            self.counts["decisions"] += sum(self._cached[request].verdict is None for request in prefilled)
            self._decisions |= {request: one.decision for request, one in prefilled.items()}
            self._verdicts |= {request: one.decision.verdict for request, one in prefilled.items()}
            self._start_decoding(prefilled)
        # A verdict that needs more tokens than the indicators have, such as one after blanks, is decoded first.
        while any(
            self._verdicts.get((row.adapter, row.key[1])) is None for row in self.decoder.rows if row.adapter == expert
        ):
            self.decoder.step()
        for place in new:
            request: Request = (expert, rows[place])
            self._verdicts[request] = self._verdicts[request] or Verdict.NEITHER  # it ended within the indicator

    def _start_decoding(self, prefilled: dict[Request, Prefilled]) -> None:
        """Continue decoding after the verdicts, in one batch for all requests of one KV cache."""
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
                        partial(self._is_over, request),
                        # A verdict is the most probable one; the answer behind it is drawn.
                        make_sampler(self.queries, request[1]) if prefilled[request].decision.verdict else None,
                        in_company=len(self.queries) > 1,
                    )
                    for request in requests
                ],
                [prefilled[request].row for request in requests],
                torch.stack([prefilled[request].mask_K for request in requests]),
            )

    def _ask_without_verdict(
        self, adapter: str | None, prefill: LazyPrefill, rows: Sequence[int], places: Sequence[int]
    ) -> None:
        """Begin the answers of the base model or of an expert that never refuses."""
        self._fetch(adapter, [rows[place] for place in places])
        new = [place for place in places if self._is_new((adapter, rows[place]))]
        for chunk in prefill().queries.chunks(new) if new else ():
            self.decoder.decode_until(self.queries.rows - len(chunk))
            requests: list[Request] = [(adapter, rows[place]) for place in chunk]
            if adapter is None:
                logits_BV, read = prefill().prefill_base(chunk)
            else:
                self.counts["prefills"] += len(chunk)
                logits_BV, read = self.pool.prefill(adapter, [self.queries.prompts[row] for _, row in requests])
            self.decoder.start(
                logits_BV,
                read,
                [answer_row(self.queries, request[1], request, adapter, self.trie.text) for request in requests],
            )

    def _is_over(self, key: Request, ids: list[int]) -> bool:
        """Whether decoding of a request can stop: it is rejected, only its verdict is wanted, or its answer is complete."""
        if self._verdicts[key] is None:
            self._verdicts[key] = self.trie.verdict(ids)
            if self._verdicts[key]:
                (row,) = [one for one in self.decoder.rows if one.key == key]
                row.sampler = make_sampler(self.queries, key[1])
        verdict = self._verdicts[key]
        if verdict is None:
            return False
        if self.queries.only_decide or not self._accepts(key, verdict):
            return True
        watch = self.queries.decoding_of(key[1]).watch
        return bool(watch and watch(strip_indicator(self.trie.text(ids), self.trie.indicators)))

    def _accepts(self, request: Request, verdict: Verdict | None) -> bool:
        return (
            verdict is not None
            and self._apply_threshold(request, verdict, self._decisions[request].log_odds) is Verdict.POS
        )

    def _finish(self) -> None:
        """Finish decoding and cache the responses."""
        self.decoder.decode_until(0)
        self._collect()

    def _collect(self) -> None:
        """Cache the responses whose decoding has ended."""
        for request, decoded in self.decoder.done.items():
            adapter, row = request
            verdict = self._verdicts.get(request)
            plain = adapter in self.plain
            answered = plain or (self._accepts(request, verdict) and not self.queries.only_decide)
            if answered and self._may_be_close(adapter, decoded):
                decoded = self._alone(request)
            text, decision = self.trie.text(decoded.ids), self._decisions.get(request)
            cached = CachedResponse(
                verdict=verdict,
                log_odds=round(decision.log_odds, 4) if decision else None,
                margin=round(decision.margin, 4) if decision else None,
                text=(text if plain else strip_indicator(text, self.trie.indicators)) if answered else None,
                truncated=not decoded.ended if answered else None,
            )
            self._cached[request] = cached
            self.batch_cache.put(adapter, row, cached)
            self.counts["generations"] += answered
            self.counts["new_tokens"] += len(decoded.ids)
        self.decoder.done.clear()

    def _may_be_close(self, adapter: str | None, decoded: Decoded) -> bool:
        """Whether another row of the batch may have changed an answer."""
        wanted = adapter is None or (self.queries.exact and decoded.in_company)
        return wanted and decoded.margin < MIN_MARGIN and not self.pool.is_exact()

    def _alone(self, request: Request) -> Decoded:
        """The answer of a request in a batch of its own."""
        adapter, row = request
        self.counts["prefills"] += 1
        if adapter in self.plain:
            state: RowState[Request] = answer_row(self.queries, row, request, adapter, self.trie.text)
            return self.pool.answer_alone(self.queries.prompts[row], state, self.eos_ids)
        assert adapter is not None
        queries = replace(self.queries.select([row]), exact=False)
        alone = SequentialRouter(self.pool, self.trie, queries, self.eos_ids, Counter(), None, self.thresholds)
        alone._ask(alone._lazy_prefill([0], [[adapter]]), [0], adapter, [0])
        alone.decoder.decode_until(0)
        return alone.decoder.done[adapter, 0]
