r"""Training prompts in other wordings, so that an expert learns to recognise its task rather than one definition.

A prompt is a definition, a blank line or a line break, and an input. Every prompt of a task begins with the same definition,
so to refuse every query without it is the easiest way to a low loss: models take such surface patterns for the task (Kung and
Peng, ACL 2023, arXiv 2305.11383). Here each example draws one kind of wording. Positives and negatives draw alike, so no kind
is a sign of either.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence

from see_lightning.data.example import Example
from see_lightning.tasks.variants import BLANK_LINE, LINE_BREAK, input_only, paraphrased

#: Kinds of wordings: the definition as it stands, in other words, left out, cut to a part, or with errors.
KINDS = ("as_is", "reworded", "none", "cut", "noised")

# Words of instructions, and others that may replace them.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "answer": ("reply", "response"),
    "based": ("relying", "building"),
    "choose": ("pick", "select"),
    "classify": ("sort", "label", "categorise"),
    "context": ("background", "text"),
    "convert": ("turn", "change"),
    "correct": ("right", "valid"),
    "create": ("make", "write"),
    "describe": ("say", "explain"),
    "determine": ("decide", "find out"),
    "example": ("instance", "case"),
    "explain": ("tell", "make clear"),
    "find": ("look for", "identify"),
    "following": ("next", "below"),
    "generate": ("produce", "come up with", "create"),
    "given": ("shown", "presented", "provided"),
    "identify": ("find", "point out"),
    "input": ("text", "material"),
    "language": ("tongue",),
    "list": ("sequence", "series"),
    "make": ("build", "write"),
    "must": ("have to", "should"),
    "need": ("have", "are required"),
    "output": ("result", "answer"),
    "paragraph": ("text", "section"),
    "passage": ("text", "paragraph"),
    "phrase": ("expression",),
    "provide": ("give", "offer"),
    "question": ("query", "what is asked"),
    "read": ("look at", "go through"),
    "return": ("give back", "output"),
    "review": ("opinion", "comment"),
    "select": ("choose", "pick"),
    "sentence": ("line", "statement"),
    "short": ("brief",),
    "should": ("must", "ought to"),
    "simple": ("plain", "easy"),
    "statement": ("claim", "sentence"),
    "summary": ("digest", "short version"),
    "task": ("exercise", "job", "assignment"),
    "text": ("passage", "piece of writing"),
    "translate": ("put", "render"),
    "use": ("make use of", "take"),
    "using": ("with", "by means of"),
    "word": ("term",),
    "words": ("terms",),
    "write": ("compose", "put down", "produce"),
    "your": ("the",),
}
# Sentences around a definition.
FRAMES = (
    "{}",
    "{}",
    "Please do the following. {}",
    "Here is what to do: {}",
    "Instruction: {}",
    "### Task\n{}",
    "I would like you to help me with this. {}",
    "{} Keep to the input below.",
    "{}\nHere it comes:",
    "Could you do this for me? {}",
)


def definition_of(example: Example, common: Mapping[str, str]) -> str:
    r"""The definition of an example's prompt: that of its task, or for tasks unknown the text before the first blank line.

    Args:
        example: with its prompt.
        common: by task, the definition with which all of its prompts begin; empty for a task without one.

    >>> definition_of(Example("1", "Add.\n\n12 and 3", "15", "general"), {})
    'Add.'
    """
    if example.task in common:
        own = common[example.task]
        return own if own and example.prompt.startswith(own + LINE_BREAK) else ""
    own, _, body = example.prompt.partition(BLANK_LINE)
    return own if body.strip() else ""


class Wordings:
    """Draws a wording for each of many examples.

    Args:
        kinds: of wordings, from ``KINDS``, each drawn equally often; a kind that is named twice is drawn twice as often.
        fits: whether an example is short enough to be trained on; one that is not keeps its wording.
    """

    def __init__(self, kinds: Sequence[str], fits: Callable[[Example], bool]) -> None:
        self.kinds, self.fits = tuple(kinds), fits
        #: By definition, texts that replace it as ``reworded``; the rules of this module serve all others.
        self.rewordings: dict[str, Sequence[str]] = {}

    def vary(self, examples: Sequence[Example], common: Mapping[str, str], draw: int, copies: int = 1) -> list[Example]:
        """The examples, each with a drawn wording of its definition; those without a definition stay as they are.

        Args:
            examples: kinds are drawn evenly within each of their tasks.
            common: by task, the definition with which all of its prompts begin.
            draw: seed of the choice.
            copies: how often each example is returned, every time under another kind; at most the number of kinds.
        """
        order = random.Random(draw)
        left: dict[str, list[str]] = {}
        varied = []
        for example in examples:
            text = definition_of(example, common)
            for kind in self._drawn(left.setdefault(example.task, []), copies, order):
                worded = self._worded(example, text, kind, order)
                varied.append(worded if self.fits(worded) else example)
        return varied

    def _drawn(self, left: list[str], number: int, order: random.Random) -> list[str]:
        """Different kinds from the rest of a shuffled set of all kinds, which is filled up when it has too few."""
        kinds: list[str] = []
        while len(kinds) < number:
            if not set(left) - set(kinds):
                left += order.sample(self.kinds, len(self.kinds))
            kind = next(kind for kind in left if kind not in kinds)
            left.remove(kind)
            kinds.append(kind)
        return kinds

    def _worded(self, example: Example, text: str, kind: str, order: random.Random) -> Example:
        if not text.strip() or kind == "as_is":
            return example
        if kind == "none":
            return input_only([example], text)[0]
        return paraphrased([example], text, self._changed(text, kind, order))[0]

    def _changed(self, text: str, kind: str, order: random.Random) -> str:
        if kind == "reworded" and self.rewordings.get(text):
            return order.choice(list(self.rewordings[text]))
        return {"reworded": reworded, "cut": cut, "noised": noised}[kind](text, order)


def reworded(text: str, order: random.Random) -> str:
    """A text in other words, by rules: synonyms, some sentences left out or moved, a sentence around it.

    >>> reworded("Write a short answer to the question.", random.Random(1))
    'Compose a brief response to the query.'
    """
    sentences = re.split(r"(?<=[.!?:])\s+", text.strip())
    if len(sentences) > 2:
        sentences = [one for one in sentences if order.random() > 0.35] or sentences[:1]
        if order.random() < 0.3:
            order.shuffle(sentences)
    changed = " ".join(_with_synonyms(one, order) for one in sentences)
    return order.choice(FRAMES).format(changed)


def _with_synonyms(text: str, order: random.Random) -> str:
    def other(found: re.Match[str]) -> str:
        word = found.group()
        choices = SYNONYMS.get(word.lower(), ())
        if not choices or order.random() > 0.8:
            return word
        choice = order.choice(choices)
        return choice[0].upper() + choice[1:] if word[0].isupper() else choice

    return re.sub(r"[A-Za-z]+", other, text)


def cut(text: str, order: random.Random) -> str:
    """A part of a text: between 20 and 60 % of its words, in a row.

    >>> cut("one two three four five", random.Random(0))
    'two three four'
    """
    words = text.split()
    size = max(1, round(order.uniform(0.2, 0.6) * len(words)))
    start = order.randint(0, len(words) - size)
    return " ".join(words[start : start + size])


def noised(text: str, order: random.Random) -> str:
    """A text with errors: a third of its words are left out, have two letters exchanged, or change places with the next.

    >>> noised("Write a short answer to the question.", random.Random(0))
    'short answer the to questino.'
    """
    words, place = text.split(), 0
    kept = []
    while place < len(words):
        word, error = words[place], order.choice(("",) * 6 + ("left out", "letters", "places"))
        if error == "places" and place + 1 < len(words):
            kept += [words[place + 1], word]
            place += 1
        elif error == "letters" and len(word) > 3:
            at = order.randrange(len(word) - 1)
            kept.append(word[:at] + word[at + 1] + word[at] + word[at + 2 :])
        elif error != "left out" or len(words) == 1:
            kept.append(word)
        place += 1
    return " ".join(kept) or text
