"""The paraphrases of a definition in a benchmark's settings; they reword test queries only, and no training row."""

from collections.abc import Sequence

from see_lightning.config.schema import PARAPHRASED
from see_lightning.errors import ConfigError


def paraphrase_texts(task: str, given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The paraphrases of a task's definition: a text is one, a list several, None none.

    Args:
        task: its name, for the message.
        given: the task's value in the setting ``benchmark.paraphrases``.

    Raises:
        ConfigError: the value is no text and no list of texts, a text is blank, or there are more than the variants.

    >>> paraphrase_texts("qa", "In short?"), paraphrase_texts("qa", ["In short?", "Sum up."]), paraphrase_texts("qa", None)
    (('In short?',), ('In short?', 'Sum up.'), ())
    """
    texts = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    wrong = [text for text in texts if not isinstance(text, str) or not text.strip()]
    if wrong:
        raise ConfigError(f"benchmark.paraphrases.{task} must be a text or a list of texts; it holds {wrong[0]!r}.")
    if len(texts) > len(PARAPHRASED):
        raise ConfigError(
            f"benchmark.paraphrases.{task} holds {len(texts)} texts, of at most {len(PARAPHRASED)}; leave some out."
        )
    return texts
