"""Loads the experts of a run, to answer new queries with them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from see_lightning.config.checks import one_of
from see_lightning.config.trust import Trust, load_config
from see_lightning.engine.asking import BASE, Messages, Reply, Request, Verdicts, read_query
from see_lightning.engine.latest import find_run
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.loaded_run import load_method
from see_lightning.errors import ConfigError, listed, nearest
from see_lightning.inference.decoder import BatchDecoder, decode_all, side_by_side
from see_lightning.methods.method import Answer, Method
from see_lightning.models.base import DTYPES
from see_lightning.tasks.batches import Queries


class Ensemble:
    """A trained method that answers queries.

    Args:
        method: trained, with its experts loaded.
        max_new_tokens: longest answer.
        batch_size: queries that are decoded together.
        digest: of the run's settings, data and finished tasks; empty if it does not come from a run.
    """

    def __init__(self, method: Method, *, max_new_tokens: int, batch_size: int, digest: str = "") -> None:
        self.method = method.eval()
        self.max_new_tokens, self.batch_size, self.digest = max_new_tokens, batch_size, digest

    def answer(
        self,
        queries: Sequence[str | Messages],
        task: str | None = None,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[Reply]:
        """Answer queries, in their order; an answer does not depend on the other queries.

        Args:
            queries: texts, the instruction included; or messages, see ``Request``.
            task: name of the task, for methods that need it (``stl``); others refuse it.
            temperature: see ``Request``; by default answers are greedy.
            top_p: see ``Request``.
            seed: of each answer's draws.
            stop: texts at whose beginning an answer ends.

        Raises:
            ConfigError: a query is too long or has no valid form, or the task is missing, unknown or not wanted.
        """
        if isinstance(queries, str):
            raise TypeError("answer takes a list of queries; for one, write answer([query]).")
        if queries and isinstance(queries[0], Mapping):
            raise TypeError("answer takes a list of queries; for one in messages, write answer([messages]).")
        if isinstance(stop, str):
            raise TypeError(f"stop takes a list of texts; for one, write stop=[{stop!r}].")
        requests = [
            Request(query, temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop), task=task)
            for query in queries
        ]
        return self.reply(requests)

    def reply(self, requests: Sequence[Request], watches: Sequence[Callable[[str], bool] | None] = ()) -> list[Reply]:
        """Answer requests, in their order.

        Args:
            requests: to be answered.
            watches: see ``answering``.

        Raises:
            ConfigError: as of ``prompt_ids``.
        """
        prompts = [self.prompt_ids(request) for request in requests]
        if not requests:
            return []
        with torch.inference_mode():
            decoder = self.method.new_decoder()
            found = decode_all(self.answering(requests, prompts, decoder, watches), decoder)
        return [found[row] for row in range(len(requests))]

    def prompt_ids(self, request: Request) -> list[int]:
        """The token ids of a request's prompt.

        Raises:
            ConfigError: the query is too long or has no valid form, or task or expert is missing, unknown or not wanted.
        """
        asked = read_query(request.query)
        self._check_names(request)
        template, query = self.method.template, asked.query
        assert query is not None  # read_query refuses messages that end otherwise
        ids: list[int] = template.conversation_ids(query, asked.system, asked.turns)
        wanted, longest = request.max_new_tokens or self.max_new_tokens, template.max_length
        if len(ids) + wanted > longest:
            raise ConfigError(
                f"a query has {len(ids)} tokens, so model.max_length={longest} leaves {max(0, longest - len(ids))} for an"
                f" answer; {wanted} are asked for (--max-new-tokens, max_new_tokens=): {query[:60]!r}"
            )
        return ids

    def _check_names(self, request: Request) -> None:
        names, task = self.method.pool.names, request.task
        if request.expert is not None:
            if request.expert not in (known := self.experts()):
                raise ConfigError(
                    f"there is no expert {request.expert!r}.{nearest(request.expert, known)} There are: {listed(known)}."
                )
            return
        if self.method.needs_task_id != (task is not None):
            raise ConfigError(
                "this method needs the task: answer(queries, task=...), --task on the command line. There are:"
                f" {listed(names)}."
                if task is None
                else "this method finds the task by itself; leave task out."
            )
        if task is not None and task not in names:
            raise ConfigError(f"there is no expert {task!r}.{nearest(task, names)} There are: {listed(names)}.")

    def experts(self) -> list[str]:
        """What can answer a query by its name: the experts, oldest first, and the base model."""
        return [*(self.method.pool.names if self.method.traits.has_experts else ()), BASE]

    def answering(
        self,
        requests: Sequence[Request],
        prompts: Sequence[list[int]],
        decoder: BatchDecoder[Any],
        watches: Sequence[Callable[[str], bool] | None] = (),
        routed: Callable[[int, Reply], None] | None = None,
    ) -> Iterator[dict[int, Reply]]:
        """Answer requests in a decoder that others may share; the caller steps it. See ``Method.answering``.

        Args:
            requests: to be answered.
            prompts: of ``prompt_ids``.
            decoder: the method's ``new_decoder``.
            watches: for each request, what is called with its answer so far after each token; True ends the answer.
            routed: called with a request's place, and its reply without text, as soon as it is known who answers. A method
                that answers its queries in one go does not call it.

        Yields:
            By the requests' places, the replies that have been completed since the last time.
        """
        queries = Queries(
            prompts=list(prompts),
            ids=[str(place) for place in range(len(requests))],
            groups=[0] * len(requests),
            limits=[one.max_new_tokens or self.max_new_tokens for one in requests],
            rows=self.batch_size,
            tasks=[one.task for one in requests if one.task],
            decoding=[
                one.decoding(
                    watches[place] if watches else None, self._telling(one, place, len(prompts[place]), routed)
                )
                for place, one in enumerate(requests)
            ],
            exact=True,
        )

        alike: dict[tuple[str | None, bool, bool], list[int]] = {}  # requests that are answered in the same way
        for place, one in enumerate(requests):
            alike.setdefault((one.expert, one.only_route, bool(read_query(one.query).turns)), []).append(place)

        def answers(
            expert: str | None, only_route: bool, several_turns: bool, places: list[int]
        ) -> Iterator[dict[int, Reply]]:
            own, asked = queries.select(places), [requests[place] for place in places]
            if only_route:
                parts = iter([dict(enumerate(self.method.routing(self._last_turns(own, asked))))])
            elif expert is not None:
                parts = self.method.answering_as(None if expert == BASE else expert, own, decoder)
            elif several_turns and self.method.traits.has_experts:
                parts = self._conversing(own, asked, decoder)
            else:
                parts = self.method.answering(own, decoder)
            for part in parts:
                yield {places[row]: self._reply(asked[row], len(own.prompts[row]), one) for row, one in part.items()}

        yield from side_by_side([answers(*kind, places) for kind, places in alike.items()])

    def _last_turns(self, queries: Queries, requests: Sequence[Request]) -> Queries:
        """The same queries without earlier turns: experts learned to decide on the queries of their tasks."""
        asked = [read_query(request.query) for request in requests]
        ids = self.method.template.conversation_ids
        return replace(
            queries,
            prompts=[
                ids(one.query, one.system) if one.turns else prompt
                for one, prompt in zip(asked, queries.prompts, strict=True)
            ],
        )

    def _conversing(
        self, queries: Queries, requests: Sequence[Request], decoder: BatchDecoder[Any]
    ) -> Iterator[dict[int, Answer]]:
        """Answers of the experts that the last turns choose, to whole conversations."""
        routes = self.method.routing(self._last_turns(queries, requests))
        self.method.tell_routes(queries, dict(enumerate(routes)))
        untold = replace(queries, decoding=[replace(one, routed=None) for one in queries.decoding])

        def under(expert: str | None) -> Iterator[dict[int, Answer]]:
            rows = [row for row, route in enumerate(routes) if route.expert == expert]
            adapter = None if expert == BASE else expert
            for part in self.method.answering_as(adapter, untold.select(rows), decoder):
                yield {
                    rows[row]: routes[rows[row]]._replace(text=answer.text, truncated=answer.truncated)
                    for row, answer in part.items()
                }

        yield from side_by_side([under(expert) for expert in dict.fromkeys(route.expert for route in routes)])

    def _telling(
        self, request: Request, place: int, prompt_tokens: int, routed: Callable[[int, Reply], None] | None
    ) -> Callable[[Answer], None] | None:
        """What a method calls when it is known who answers a request."""
        return routed and (lambda answer: routed(place, self._reply(request, prompt_tokens, answer)))

    def _reply(self, request: Request, prompt_tokens: int, answer: Answer) -> Reply:
        text, is_stopped = request.until_stop(answer.text)
        asked = answer.asked or self.method.newest_first()[: len(answer.verdicts)]
        limits = getattr(self.method, "thresholds", {})
        return Reply(
            text,
            answer.expert,
            Verdicts(answer.verdicts, asked),
            answer.log_odds,
            tuple(limits.get(expert) for expert in asked),
            answer.truncated and not is_stopped,
            prompt_tokens,
        )


def usable_device(device: str | torch.device) -> torch.device:
    """A torch device, after a test that it can be used.

    Raises:
        ConfigError: the device cannot be used.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {device} cannot be used: {str(error).strip().splitlines()[0]}") from error
    return found


def load_ensemble(
    run_dir: str | Path,
    *,
    max_new_tokens: int = 128,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    trust: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Ensemble:
    """Load the experts of a run; every file is checked against its sha256 in the ledger.

    Args:
        run_dir: a run directory, ``runs/<order>/<method>/<key>/seed=<n>``, or another path that ``find_run`` takes, such as
            ``runs/<order>/<method>/latest``. Of an unfinished run the finished experts are loaded.
        max_new_tokens: longest answer.
        device: of the model, such as ``cuda`` or ``cuda:1``.
        dtype: of the base model: ``bf16``, ``fp32`` or a torch dtype; None takes the run's. With another dtype than the
            run's a verdict close to its threshold may change.
        trust: dotted names of your own classes, methods or readers, which may be imported if the run names them; classes
            that the calling program has imported are trusted too. No other code is run.
        trust_remote_code: whether Python code in the base model's files may run.

    Raises:
        ConfigError: the folder has no run, the run needs code that is not trusted, or device or dtype cannot be used.
        LedgerError: a file of the run is damaged, or the tokenizer or template has changed since training.
    """
    names = {kind: name for name, kind in DTYPES.items()}
    name = names.get(dtype, str(dtype)) if isinstance(dtype, torch.dtype) else dtype
    if name is not None:
        one_of("dtype", name, DTYPES)
    place = usable_device(device)
    run_dir = find_run(run_dir)
    if not (run_dir / "config.yaml").exists() or not (run_dir / "ledger.json").exists():
        raise ConfigError(f"{run_dir} holds no run; give the folder that has ledger.json in it.")
    if isinstance(trust, str):
        raise TypeError(f"trust takes a list of names; for one, write trust=[{trust!r}].")
    cfg = load_config(run_dir / "config.yaml", Trust(tuple(trust), trust_remote_code))
    ledger = Ledger(run_dir).read()
    method = load_method(cfg, ledger, name, place)
    if method.traits.schedule != "frozen" and not (method.pool.names or method.state()):
        raise ConfigError(f"{run_dir} has finished no task yet, so it has no expert to answer.")
    about = ledger.content["about"]
    learned = [about["numbers"], about.get("contents"), about.get("prompts"), list(ledger.content["stages"]), name]
    digest = hashlib.sha256(json.dumps(learned, sort_keys=True).encode()).hexdigest()[:16]
    return Ensemble(method, max_new_tokens=max_new_tokens, batch_size=cfg.data.eval_batch_size, digest=digest)
