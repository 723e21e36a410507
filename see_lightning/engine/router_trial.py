"""Routes the test queries of a finished run by one router after another, over the same experts; nothing is trained.

A response that the run or an earlier router has needed is taken from the cache; new ones are kept with the run.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from see_lightning.adapters.response_cache import ResponseCache
from see_lightning.config.instantiate import instantiate
from see_lightning.engine.conversations import check_conversations
from see_lightning.engine.ledger import OOD, OOD_INPUT_ONLY, ROUTED, Ledger
from see_lightning.engine.loaded_run import keep_said
from see_lightning.engine.router import check_prompts_suffice, learn_route
from see_lightning.engine.router_options import RouterOption
from see_lightning.errors import ConfigError
from see_lightning.evaluation.router_figures import AS_IS, answered, foreign_figures, own_figures
from see_lightning.evaluation.routing import BASE
from see_lightning.evaluation.scores import best_score
from see_lightning.inference.prefix_cache import PrefillCache
from see_lightning.methods.method import Answer, ExpertMethod
from see_lightning.methods.see import See
from see_lightning.routing.router import Router
from see_lightning.routing.verdicts import Route
from see_lightning.routing.walk import Verifying
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.datamodule import query_loader
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

COUNTED = 4  # queries of each task on which the costs of routing are counted
FOREIGN = (OOD, OOD_INPUT_ONLY)
Record = dict[str, Any]


@dataclass
class RouterTrial:
    """Measures routers on the test queries of a run.

    Args:
        cfg: of the run.
        method: with its experts and cached responses.
        tasks: of the run, in their order.
        sets: further test queries by name: variants of the run's own, ``OOD`` and ``OOD_INPUT_ONLY``.
        given: by task, the right expert.
        ledger: of the run; new responses are kept in it.
        batch_size: queries decoded together.
    """

    cfg: DictConfig
    method: ExpertMethod
    tasks: Sequence[Task]
    sets: Mapping[str, Sequence[Task]]
    given: Mapping[str, str]
    ledger: Ledger
    batch_size: int
    #: Embeddings of prompts, which all routers share.
    embedded: dict[Any, Tensor] = field(default_factory=dict)
    #: By task, thresholds of log-odds that the run's own router did not need, and a router that is tried here does.
    thresholds: dict[str, float] = field(default_factory=dict)

    def row(self, option: RouterOption, *, answers: bool) -> dict[str, Any]:
        """The figures of one router.

        Args:
            option: the router.
            answers: whether the run's own queries are answered as well.

        Returns:
            ``router``, its name, ``settings`` and ``is_own``; ``cannot``, the reason if it cannot route the experts, and then
            no figures, and ``tried``, whether it was built.
            ``told``: whether each query must come with its task; then ``sets`` is empty.
            ``sets``: by set of queries, ``own_figures`` or ``foreign_figures``. ``AR`` and ``scores`` with ``answers``.
            ``bytes``: what the router keeps. ``prefills``, ``asked``, ``seconds``: see ``_costs``.
        """
        about = {"router": option.name, "is_own": option.settings is None, "settings": option.settings}
        if option.cannot:
            return {**about, "tried": False, "cannot": option.cannot}
        try:
            with self._by(option), torch.inference_mode():
                return {**about, "tried": True, "cannot": None, **self._figures(option.name, answers)}
        except ConfigError as error:  # of the router, which cannot route these experts
            return {**about, "tried": True, "cannot": str(error)}

    @contextmanager
    def _by(self, option: RouterOption) -> Iterator[None]:
        """A context in which the method routes by a router that has learned all tasks in their order."""
        if option.settings is None:
            yield
            return
        own, node = self.method.chosen_router, OmegaConf.create(dict(option.settings))
        cfg = cast("DictConfig", OmegaConf.merge(self.cfg, {"router": node}))
        check_prompts_suffice(cfg, self.tasks)
        check_conversations(cfg, chain(self.tasks, *self.sets.values()))
        self.method.chosen_router = instantiate(node, method=self.method)
        thresholds = self.method.thresholds if isinstance(self.method, See) else {}
        try:
            for router in _parts(self.method.chosen_router):
                router.embedded, router.keeps_embeddings = self.embedded, True
            with torch.inference_mode():
                learned = [task for task in self.tasks if self.method.expert_of(task.name) == task.name]
                for task in learned:
                    if option.has_state and own and (tensors := own.state(task.name)):
                        self.method.chosen_router.load_state(task.name, tensors)
                        continue
                    print(f"{option.name}: learns {task.name}", file=sys.stderr)
                    learn_route(self.method, task)
                if isinstance(self.method, See) and self.method.chosen_router.uses_thresholds:
                    self._calibrate(self.method, learned)
            assert self.method.response_cache is not None
            self.method.response_cache.new.clear()  # responses to training rows, which no file of the run has a place for
            yield
        finally:
            self.method.chosen_router = own
            if isinstance(self.method, See):
                self.method.thresholds = thresholds

    def _calibrate(self, method: See, learned: Sequence[Task]) -> None:
        """Set the thresholds that a run by this router would have, of experts without one."""
        method.thresholds = self.thresholds | method.thresholds
        memory = Memory(method.run_seed)
        for task in learned:
            if task.name not in method.thresholds:
                method.calibrate(task, memory)
            memory.add(task)
        self.thresholds = dict(method.thresholds)

    def _figures(self, name: str, answers: bool) -> dict[str, Any]:
        """The figures of the router by which the method routes now."""
        told = self.method.needs_task_id
        costs = self._costs()
        sets: dict[str, Any] = {}
        records = self._routed(name, AS_IS, self.tasks, answers=answers) if answers or not told else []
        found = answered(records, [task.name for task in self.tasks]) if answers else {"AR": None, "scores": None}
        if not told:
            sets[AS_IS] = own_figures(records, self.given)
            asked = [len(record["verdicts"]) for record in records]
            if isinstance(self.method.router, Verifying):
                costs["asked"] = round(sum(asked) / len(asked) + costs["asked"] - costs.pop("walked"), 4)
            for kind, tasks in self.sets.items():
                some = self._routed(name, kind, tasks)
                sets[kind] = foreign_figures(some) if kind in FOREIGN else own_figures(some, self.given)
        costs.pop("walked", None)
        return {"told": told, "sets": sets, **found, "bytes": self.method.router.nbytes(), **costs}

    def _routed(self, name: str, kind: str, tasks: Sequence[Task], *, answers: bool = False) -> list[Record]:
        """Records of queries: ``task``, ``expert``, ``verdicts``, and the ``score`` of the answer if there are answers."""
        records: list[Record] = []
        for task in tasks:
            for queries in self._batches([task]):
                for answer in self.method.answer(queries) if answers else self._choose(queries):
                    example = task.test[int(answer.id)]
                    score = best_score(task.score, answer.text, example.references, example.prompt) if answers else None
                    records.append(
                        {"task": task.name, "expert": answer.expert, "verdicts": answer.verdicts, "score": score}
                    )
            keep_said(self.method, task, self.ledger, ROUTED)
            goal = self.given.get(task.name, BASE)
            reached = sum(record["expert"] == goal for record in records[-len(task.test) :])
            print(f"{name} · {kind} · {task.name}: {reached} of {len(task.test)} reach {goal}", file=sys.stderr)
        return records

    def _batches(self, tasks: Sequence[Task]) -> Iterator[Queries]:
        tell = self.method.needs_task_id
        yield from query_loader(tasks, self.method.template, batch_size=self.batch_size, tell_task=tell)

    def _choose(self, queries: Queries) -> list[Answer]:
        """Who answers each query, and by which verdicts, without the answers."""
        router = self.method.router
        if isinstance(router, Verifying):
            routes = router.decide(queries)
        else:
            routes = [Route(name, ()) for name in self.method.route(queries)]
        return [
            Answer(id_, "", one.expert or BASE, one.verdicts, False)
            for id_, one in zip(queries.ids, routes, strict=True)
        ]

    def _costs(self) -> dict[str, float]:
        """Costs of a query, counted on the first ``COUNTED`` queries of each task, without the run's cached responses.

        Returns:
            ``prefills``: how often its whole prompt is read until the first token of its answer: by the base model for
            features, by an expert for a verdict, by the adapter that answers. ``asked``: experts whose verdict is decoded;
            of a router without verdicts 1 if it chooses an expert, 0 if the base model. ``walked``: of ``asked``, those
            with which the walk ended. ``seconds``: of the wall clock, on this machine.
        """
        method, pool = self.method, self.method.pool
        kept = method.response_cache, pool.prefill_cache
        assert method.response_cache is not None
        method.response_cache, pool.prefill_cache = ResponseCache(*method.response_cache.settings), PrefillCache(0)
        embedded = {router: router.embedded for router in _parts(method.router)}
        for router in embedded:
            router.embedded = {}
        method.counts.clear()
        try:
            started, found = time.monotonic(), []
            for queries in self._batches([replace(task, test=task.test[:COUNTED]) for task in self.tasks]):
                found += method.answer(replace(queries, limits=[1] * len(queries)))
            seconds = time.monotonic() - started
        finally:
            method.response_cache, pool.prefill_cache = kept
            for router, embeddings in embedded.items():
                router.embedded = embeddings
        walked = sum(len(answer.verdicts) for answer in found)
        asked = method.counts["decisions"] or sum(answer.expert != BASE for answer in found)
        whole = {"prefills": method.counts["prefills"], "asked": asked, "walked": walked, "seconds": seconds}
        return {name: round(value / len(found), 4) for name, value in whole.items()}


def _parts(router: Router) -> Iterator[Router]:
    """A router and the routers that it is made of."""
    yield router
    for part in vars(router).values():
        if isinstance(part, Router):
            yield from _parts(part)
