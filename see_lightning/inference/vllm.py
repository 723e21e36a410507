"""Client of a vLLM server: completions of token ids under a LoRA adapter, with the log-probabilities of their tokens."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from see_lightning.errors import ConfigError, Refusal, listed

#: Alternatives that vLLM gives for each token unless it is started with --max-logprobs.
MOST = 20
START = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank RANK"
TOKEN = "token_id:"
#: Of every request. The penalties would else be those of the model's generation_config.json, which this package does not use.
GREEDY = {
    "temperature": 0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "return_tokens_as_token_ids": True,
    "add_special_tokens": False,
}


@dataclass(frozen=True, slots=True)
class Completion:
    """Generated tokens.

    Args:
        ids: without the token that ended them.
        logprobs: for each of the ids, and for the one that ended them if there was one, the natural log-probabilities of the
            most probable tokens by id.
        ended: whether a token ended them, and not the limit.
    """

    ids: list[int]
    logprobs: list[dict[int, float]]
    ended: bool


class VllmServer:
    """A running server.

    Args:
        url: of its API, ending in ``/v1``.
        eos_ids: tokens that end a completion.
        parallel: requests that are sent at once.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, url: str, eos_ids: Sequence[int], *, parallel: int = 64, timeout: float = 600.0) -> None:
        self.url, self.eos_ids, self.parallel, self.timeout = url.rstrip("/"), sorted(eos_ids), parallel, timeout
        self.requests = 0
        #: Names of the adapters that it serves, and of its base model, which has no parent.
        self.names: set[str] = set()
        models = self._send("models")["data"]
        self.names |= {str(model["id"]) for model in models}
        self.base = next((str(model["id"]) for model in models if not model.get("parent")), None)
        if self.base is None:
            raise ConfigError(f"{self.url}/models names no base model; is this a vLLM server? Start one: {START}")

    def add(self, name: str, folder: Path) -> None:
        """Load an adapter from a PEFT folder that the server can read; nothing if it serves the name already.

        Raises:
            ConfigError: the server refuses.
        """
        if name in self.names:
            return
        self._send("load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
        self.names.add(name)

    def complete(
        self, model: str | None, prompts: Sequence[Sequence[int]], limits: Sequence[int], *, logprobs: int = 1
    ) -> list[Completion]:
        """Greedy completions, in the order of the prompts.

        Args:
            model: name of an adapter; None is the base model.
            prompts: token ids.
            limits: most new tokens of each.
            logprobs: tokens whose log-probabilities are given at each place, 1 to 20.
        """
        bodies = [
            {
                "model": model or self.base,
                "prompt": list(prompt),
                "max_tokens": limit,
                "logprobs": logprobs,
                "stop_token_ids": self.eos_ids,
                **GREEDY,
            }
            for prompt, limit in zip(prompts, limits, strict=True)
        ]
        return [self._read(answer) for answer in self._all(bodies)]

    def logprobs(self, model: str | None, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[float]:
        """The natural log-probability of one given token behind each prompt; ``model`` as in ``complete``.

        The token is the only one that may be written, and vLLM tells the log-probability that it had among all. (Those of a
        prompt's tokens, ``prompt_logprobs``, end a server on a CPU with an error where an adapter is used, in vLLM 0.32.)
        """
        bodies = [
            {
                "model": model or self.base,
                "prompt": list(prompt),
                "max_tokens": 1,
                "logprobs": 1,
                "allowed_token_ids": [token],
                **GREEDY,
            }
            for prompt, token in zip(prompts, tokens, strict=True)
        ]
        found = []
        for token, answer in zip(tokens, self._all(bodies), strict=True):
            one = self._read(answer, keep_end=True)
            if one.ids != [token]:
                raise ConfigError(f"{self.url}/completions wrote {one.ids}, where allowed_token_ids was [{token}].")
            found.append(one.logprobs[0][token])
        return found

    def _all(self, bodies: Sequence[dict[str, Any]]) -> list[Any]:
        """The answers to requests that are sent at once, in their order."""
        with ThreadPoolExecutor(max(1, min(self.parallel, len(bodies)))) as pool:
            return list(pool.map(lambda body: self._send("completions", body), bodies))

    def _read(self, answer: Any, *, keep_end: bool = False) -> Completion:
        try:
            (choice,) = answer["choices"]
            ids = [_id(token) for token in choice["logprobs"]["tokens"]]
            top = [
                {_id(token): float(value) for token, value in one.items()} for one in choice["logprobs"]["top_logprobs"]
            ]
            stopped = choice["finish_reason"] == "stop"
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{self.url}/completions answered in another form than vLLM's ({type(error).__name__}: {error}); it must give"
                f" log-probabilities by token id (return_tokens_as_token_ids)."
            ) from error
        if ids and ids[-1] in self.eos_ids and not keep_end:
            ids.pop()
        return Completion(ids, top, stopped)

    def _send(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The server's answer to one request, as JSON; a text where it is none."""
        self.requests += 1
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}/{path}", data, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=self.timeout) as answer:
                text = answer.read().decode()
        except HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            advice = {
                "load_lora_adapter": f" Adapters are loaded at run time: start the server with {START}, with RANK not below"
                " adapter.rank, on a machine that sees the run's folder.",
                "completions": f" It serves {listed(sorted(self.names), most=3)}.",
            }.get(path, "")
            raise ConfigError(f"{self.url}/{path} refused: {error.code} {said}.{advice}") from error
        except (URLError, OSError) as error:
            raise Refusal(
                f"no vLLM server answers at {self.url}: {error}. Start one: {START}; or set evaluate.url."
            ) from error
        try:
            return json.loads(text)
        except ValueError:
            return text


def _id(token: str) -> int:
    """The id in vLLM's words for it.

    >>> _id("token_id:42")
    42
    """
    if not token.startswith(TOKEN):
        raise ValueError(f"{token!r} is no token id")
    return int(token.removeprefix(TOKEN))
