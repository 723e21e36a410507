"""How experts are asked that give a verdict on a query before they answer it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from see_lightning.adapters.response_cache import CachedResponse
from see_lightning.inference.decoder import BatchDecoder
from see_lightning.methods.method import Answer, ExpertMethod, Method
from see_lightning.methods.second_chance import SecondChance
from see_lightning.routing.indicator_trie import IndicatorTrie
from see_lightning.routing.sequential_router import SequentialRouter
from see_lightning.routing.verdicts import Route
from see_lightning.routing.walk import Verifying, Walk
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.reconstruct import Indicators


class DecidingExperts(ExpertMethod):
    """Answers queries by experts that give verdicts.

    Attributes:
        indicators: the positive and the negative one.
        thresholds: by expert, the log-odds below which a positive verdict counts as negative.
        second_chance: asks an expert again behind its task's definition; None if it is off.
    """

    indicators: Indicators
    thresholds: dict[str, float]
    second_chance: SecondChance | None

    def answer(self, queries: Queries) -> list[Answer]:
        """Continues each answer from the verdict that accepted its query, if the router asks for verdicts."""
        if not isinstance(self.router, Verifying):
            return super().answer(queries)
        router, orders = self.sequential_router(queries), self.router.orders(queries)
        routes = router.walk(orders)
        answers = [
            self._walked(router, row, orders[row], route, response)
            for row, (route, response) in enumerate(zip(routes, router.answers(routes), strict=True))
        ]
        return self._ask_again(queries, answers) if self.second_chance else answers

    def routing(self, queries: Queries) -> list[Answer]:
        """The first expert that accepts each query, and the verdicts up to it; without a second chance."""
        if not isinstance(self.router, Verifying):
            return super().routing(queries)
        queries = replace(queries, only_decide=True)
        router, orders = self.sequential_router(queries), self.router.orders(queries)
        routes = router.walk(orders)
        nothing = CachedResponse()
        return [self._walked(router, row, orders[row], route, nothing) for row, route in enumerate(routes)]

    def answering(self, queries: Queries, decoder: BatchDecoder[Any]) -> Iterator[dict[int, Answer]]:
        """Continues each answer from the verdict that accepted its query; with ``second_chance`` outside of the decoder."""
        if self.second_chance or not isinstance(self.router, Verifying):
            other = Method.answering if self.second_chance else ExpertMethod.answering
            yield from other(self, queries, decoder)
            return
        router, orders = self.sequential_router(queries, decoder=decoder), self.router.orders(queries)
        routes = router.begin(orders)
        nothing = CachedResponse()
        self.tell_routes(
            queries,
            {row: self._walked(router, row, orders[row], route, nothing) for row, route in enumerate(routes)},
        )
        for ended in router.ending(routes):
            yield {
                row: self._walked(router, row, orders[row], routes[row], response) for row, response in ended.items()
            }

    def _walked(
        self, router: SequentialRouter, row: int, order: Sequence[str], route: Route, response: CachedResponse
    ) -> Answer:
        asked = tuple(order[: len(route.verdicts)])
        return Answer(
            router.queries.ids[row],
            response.text or "",
            route.expert or "base",
            route.verdicts,
            bool(response.truncated),
            () if isinstance(self.router, Walk) else asked,
            router.log_odds_of(row, asked),
        )

    def _ask_again(self, queries: Queries, answers: list[Answer]) -> list[Answer]:
        """The answers, with another one for each refused query that an expert accepts behind its task's definition."""
        assert self.second_chance
        refused = [row for row, answer in enumerate(answers) if answer.expert == "base"]
        again = self.second_chance.choose(queries.select(refused))
        if not again:
            return answers
        rows = [refused[one.row] for one in again]
        # Not cached: the records of a query hold its verdicts as it stands.
        router = self.sequential_router(
            replace(queries.select(rows), prompts=[one.prompt for one in again]), remember=False
        )
        routes = router.walk([[one.expert] for one in again], ask_base=False)
        self.counts["second_chances"] += len(again)
        newest_first = self.newest_first()
        for row, one, route, response in zip(rows, again, routes, router.answers(routes), strict=True):
            answer = answers[row]
            asked = (*(answer.asked or newest_first[: len(answer.verdicts)]), one.expert)
            more = router.log_odds_of(again.index(one), [one.expert])
            answers[row] = answer._replace(
                verdicts=(*answer.verdicts, *route.verdicts), asked=asked, log_odds=(*answer.log_odds, *more)
            )
            if route.expert:
                answers[row] = answers[row]._replace(
                    text=response.text or "", expert=route.expert, truncated=bool(response.truncated)
                )
        return answers

    def decide(self, queries: Queries) -> None:
        """Caches every expert's verdict on every query, from which other walks can be simulated.

        Without ``queries.only_decide``, also the answers of experts that accept, and the base model's answers.
        """
        self.sequential_router(queries).decide_all()

    def sequential_router(
        self, queries: Queries, *, remember: bool = True, decoder: BatchDecoder[Any] | None = None
    ) -> SequentialRouter:
        """The sequential router of a batch.

        Args:
            queries: the batch.
            remember: whether it uses the response cache.
            decoder: shared with others, who step it; None is a decoder of its own.
        """
        return SequentialRouter(
            self.pool,
            IndicatorTrie(self.indicators, self.template),
            queries,
            self.eos_ids(),
            self.counts,
            self.response_cache if remember else None,
            self.thresholds,
            decoder,
            self.never_refusing,
        )
