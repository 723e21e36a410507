"""Conversations as lists of messages, as OpenAI and TRL publish them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from see_lightning.data.example import Turn
from see_lightning.data.reader import RowError
from see_lightning.data.texts import kind_of
from see_lightning.errors import listed
from see_lightning.files.text import NoJson, holds_surrogate, parse_json

SYSTEM = ("system", "developer")  # two names of the same role
ROLES = ("system", "user", "assistant")
TOOLS = ("tool_calls", "function_call")  # an assistant's calls, which no prompt or answer here can hold


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of a row.

    Args:
        system: of the first message, if it is a system prompt; else None.
        turns: of the user and the assistant.
        weights: of each turn's answer in training, 0 or 1; 1 where none is given.
        query: a last message of the user that has no answer in the row; else None.
        unread: keys of messages that are not read.
    """

    system: str | None
    turns: tuple[Turn, ...]
    weights: tuple[int, ...]
    query: str | None
    unread: frozenset[str]


def read_messages(value: object) -> Conversation:
    """The conversation of a row.

    Args:
        value: a list of ``{"role": ..., "content": ...}``, or its JSON text, as in a cell of a CSV file.

    Raises:
        RowError: it is no such list, a message cannot be used, or users and assistants do not take turns.

    >>> found = read_messages([{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}])
    >>> found.turns, found.weights, found.query
    ((Turn(query='1 + 1?', answer='2'),), (1,), None)
    """
    if isinstance(value, str):
        value = from_json("messages", value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise RowError(f"'messages' must be a list of messages, found {kind_of(value)}")
    messages = [_message(one, number) for number, one in enumerate(value, start=1)]
    system = messages.pop(0)[1] if messages[0][0] in SYSTEM else None
    first = 1 if system is None else 2  # number of the first message of a turn
    for place, (role, _, _) in enumerate(messages):
        expected = ROLES[1 + place % 2]
        if role != expected:
            which = f"message {first + place}"
            if role in SYSTEM:
                raise RowError(f"{which} has the role {role}; only the first message may have it")
            before = f"after one of the {messages[place - 1][0]}" if place else "as the first turn"
            raise RowError(f"{which} has the role {role} {before}; user and assistant take turns, the user first")
    queries, answers = messages[0::2], messages[1::2]
    turns = tuple(Turn(query[1], answer[1]) for query, answer in zip(queries, answers, strict=False))
    return Conversation(
        system=((system or "").strip() and system) or None,
        turns=turns,
        weights=tuple(_weight(answer[2], first + 1 + 2 * place) for place, answer in enumerate(answers)),
        query=queries[-1][1] if len(queries) > len(answers) else None,
        unread=frozenset(key for _, _, others in messages for key in others if key != "weight"),
    )


def from_json(column: str, text: str) -> object:
    """The value that a text holds as JSON.

    Raises:
        RowError: the text is not JSON.
    """
    try:
        return parse_json(text)
    except NoJson as error:
        raise RowError(f"{column!r} must be a list, found a text that is not the JSON of one: {error}") from error


def _message(message: object, number: int) -> tuple[str, str, dict[str, Any]]:
    """Role and content of a message, and its other values, without those that are null."""
    if not isinstance(message, Mapping):
        raise RowError(f"message {number} must be an object of role and content, found {kind_of(message)}")
    given = {str(key): value for key, value in message.items() if value is not None}
    if calls := next((key for key in TOOLS if given.get(key)), None):
        raise RowError(f"message {number} has {calls!r}; calls of tools cannot be learned, leave the row out")
    missing = [key for key in ("role", "content") if key not in given]
    if missing:
        raise RowError(f"message {number} has no {' and no '.join(map(repr, missing))}; found: {listed(message)}")
    role, content = given.pop("role"), given.pop("content")
    if role not in (*ROLES, *SYSTEM):
        raise RowError(f"message {number} has the role {role!r:.100}; allowed are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise RowError(f"the content of message {number} must be a string, found {kind_of(content)}")
    if holds_surrogate(content):
        raise RowError(f"message {number} holds half a surrogate pair, which cannot be written as UTF-8")
    if not content.strip() and role not in SYSTEM:
        raise RowError(f"message {number}, of the {role}, is empty")
    return role, content, {key: value for key, value in given.items() if key not in TOOLS}


def _weight(others: Mapping[str, Any], number: int) -> int:
    weight = others.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowError(f"the weight of message {number} must be 0 or 1, found {weight!r:.100}")
    return int(weight)
