"""Requests and answers in the form of the OpenAI API. Fields that would have no effect are refused by name."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from see_lightning.engine.asking import BASE, Reply, Request, read_query
from see_lightning.errors import ConfigError, listed, nearest

#: Fields that the server does not honour, and the values with which they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
NOTES = ("user", "metadata", "safety_identifier")  # they name the client, and ask for nothing
SHARED = ("model", "temperature", "top_p", "seed", "stop", "max_tokens", "stream", "stream_options", "task")
FIELDS = {"chat": (*SHARED, "messages", "max_completion_tokens"), "completion": (*SHARED, "prompt")}


class BadRequest(ConfigError):
    """A field that cannot be honoured.

    Args:
        message: what was given, and what is allowed.
        field: its name.
        status: of HTTP.
        code: of the OpenAI API.
    """

    def __init__(self, message: str, field: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.field, self.status, self.code = field, status, code

    def body(self) -> dict[str, Any]:
        """The error in the API's form."""
        return error_body(str(self), param=self.field, code=self.code)


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error in the API's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ModelNames:
    """The names by which a client chooses who answers.

    Args:
        run: name of the run: the method routes the query.
        experts: ``<run>:<expert>`` is answered by that expert, ``base`` included.
    """

    def __init__(self, run: str, experts: Sequence[str]) -> None:
        self.run, self.experts = run, list(experts)
        #: By name, the expert that answers, None where the method routes the query.
        self.by_name: dict[str, str | None] = {run: None, **{f"{run}:{expert}": expert for expert in experts}}

    def expert(self, name: str) -> str | None:
        """The expert that a name chooses.

        Raises:
            BadRequest: there is no such name.
        """
        if name not in self.by_name:
            raise BadRequest(
                f"there is no model {name!r}.{nearest(name, self.by_name)} There are: {listed(list(self.by_name))}.",
                "model",
                status=404,
                code="model_not_found",
            )
        return self.by_name[name]

    def records(self, created: int) -> list[dict[str, Any]]:
        """All models, as ``GET /v1/models`` lists them."""
        return [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "see_lightning",
                "root": name,
                "parent": None if name == self.run or expert == BASE else f"{self.run}:{BASE}",
            }
            for name, expert in self.by_name.items()
        ]


def check_fields(body: Any, kind: str) -> dict[str, Any]:
    """The fields of a request without those that ask for nothing.

    Args:
        body: the parsed JSON.
        kind: ``chat`` or ``completion``.

    Raises:
        BadRequest: it is no object, or has a field that is not honoured.
    """
    if not isinstance(body, dict):
        raise BadRequest("the body of a request is a JSON object.")
    allowed = FIELDS[kind]
    kept = {}
    for name, value in body.items():
        if name in NOTES or (value is None and name in (*allowed, *NEUTRAL)):
            continue
        if name in NEUTRAL:
            if not any(
                value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NEUTRAL[name]
            ):
                neutral = " or ".join(repr(one) for one in NEUTRAL[name])
                raise BadRequest(f"{name}={value!r:.80} is not honoured; leave it out, or give {neutral}.", name)
        elif name not in allowed:
            known = (*allowed, *NEUTRAL, *NOTES)
            raise BadRequest(
                f"there is no field {name!r}.{nearest(name, known)} There are: {listed(list(allowed))}.", name
            )
        else:
            kept[name] = value
    return kept


def _typed(body: Mapping[str, Any], name: str, kinds: type | tuple[type, ...], told: str) -> Any:
    value = body.get(name)
    is_wrong_bool = isinstance(value, bool) and kinds is not bool
    if value is not None and (is_wrong_bool or not isinstance(value, kinds)):
        raise BadRequest(f"{name} is {told}; got {value!r:.80}.", name)
    return value


def read_request(body: Mapping[str, Any], query: Any, names: ModelNames) -> Request:
    """A request of the ensemble.

    Args:
        body: of ``check_fields``.
        query: a text or messages.
        names: of models.

    Raises:
        BadRequest: a field has another type, is missing or out of its range, or the model is not known.
    """
    model = _typed(body, "model", str, "a text")
    if model is None:
        raise BadRequest(f"model is missing; there are: {listed(list(names.by_name))}.", "model")
    stop = _typed(body, "stop", (str, list), "a text or a list of texts")
    most = _typed(body, "max_completion_tokens", int, "a whole number")
    most = _typed(body, "max_tokens", int, "a whole number") if most is None else most
    numbers = {name: _typed(body, name, (int, float), "a number") for name in ("temperature", "top_p")}
    expert = names.expert(model)
    try:
        return Request(
            query,
            max_new_tokens=most,
            temperature=numbers["temperature"] or 0.0,
            top_p=1.0 if numbers["top_p"] is None else numbers["top_p"],
            seed=_typed(body, "seed", int, "a whole number"),
            stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
            task=_typed(body, "task", str, "a text"),
            expert=expert,
        )
    except ConfigError as error:
        name = str(error).split()[0]
        raise BadRequest(str(error), {"max_new_tokens": "max_tokens"}.get(name, name)) from error


def read_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a chat request, their contents as texts.

    Raises:
        BadRequest: they are no conversation that ends with the user's query, or one has a part that is no text.
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise BadRequest("messages is a list of messages, at least one.", "messages")
    found = [_with_text(message) for message in messages]
    try:
        read_query(found)
    except ConfigError as error:
        raise BadRequest(str(error), "messages") from error
    return found


def _with_text(message: Any) -> Any:
    """A message whose content may be a list of parts of the type text, with the text itself."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return {**message, "content": "".join(str(part.get("text", "")) for part in content)}
    return message


def read_prompts(body: Mapping[str, Any]) -> list[str]:
    """The prompts of a completion request.

    Raises:
        BadRequest: there is none, or they are no texts.
    """
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise BadRequest("prompt is a text, or a list of texts; token ids are not taken.", "prompt")
    return prompts


def includes_usage(body: Mapping[str, Any]) -> bool:
    """Whether the last chunk of a stream shall have the usage.

    Raises:
        BadRequest: ``stream_options`` has another field, or stands without ``stream``.
    """
    options = _typed(body, "stream_options", dict, "an object") or {}
    if options and not body.get("stream"):
        raise BadRequest("stream_options is for stream=true.", "stream_options")
    if unknown := sorted(set(options) - {"include_usage", "include_obfuscation"}):
        raise BadRequest(f"stream_options has no field {unknown[0]!r}; there is include_usage.", "stream_options")
    return bool(options.get("include_usage"))


def see_field(reply: Reply) -> dict[str, Any]:
    """Who answered, and the verdicts that led there."""
    return {"expert": reply.expert, "verdicts": reply.said()}


class Form:
    """Answers of one kind: of a chat, or of completions.

    Args:
        kind: ``chat`` or ``completion``.
        model: as the client named it.
        count_tokens: of a text.
    """

    def __init__(self, kind: str, model: str, count_tokens: Callable[[str], int]) -> None:
        self.is_chat, self.model, self.count_tokens = kind == "chat", model, count_tokens
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """A response with one choice for each reply."""
        choices = []
        for index, reply in enumerate(replies):
            said = (
                {"message": {"role": "assistant", "content": reply.text, "refusal": None}}
                if self.is_chat
                else {"text": reply.text}
            )
            choices.append(
                {"index": index, **said, "logprobs": None, "finish_reason": _reason(reply), "see": see_field(reply)}
            )
        see = {"see": see_field(replies[0])} if len(replies) == 1 else {}
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage(replies), **see}

    def begin(self, reply: Reply) -> dict[str, Any]:
        """The first chunk of a stream: who answers."""
        choice = {"delta": {"role": "assistant", "content": ""}} if self.is_chat else {"text": ""}
        return self._chunk(choice, None, see=see_field(reply))

    def part(self, text: str) -> dict[str, Any]:
        """A chunk with a piece of the answer."""
        return self._chunk({"delta": {"content": text}} if self.is_chat else {"text": text}, None)

    def end(self, reply: Reply) -> dict[str, Any]:
        """The last chunk of a stream."""
        return self._chunk({"delta": {}} if self.is_chat else {"text": ""}, _reason(reply))

    def usage_chunk(self, reply: Reply) -> dict[str, Any]:
        """The chunk behind the last one that has the usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage([reply])}

    def usage(self, replies: Sequence[Reply]) -> dict[str, int]:
        """Tokens of prompts and answers; an answer's are those of its text."""
        prompt = sum(reply.prompt_tokens for reply in replies)
        completion = sum(self.count_tokens(reply.text) for reply in replies)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _chunk(self, choice: dict[str, Any], reason: str | None, **more: Any) -> dict[str, Any]:
        choices = [{"index": 0, **choice, "logprobs": None, "finish_reason": reason}]
        return {**self._head("chat.completion.chunk"), "choices": choices, **more}

    def _head(self, kind: str) -> dict[str, Any]:
        kind = kind if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _reason(reply: Reply) -> str:
    return "length" if reply.truncated else "stop"
