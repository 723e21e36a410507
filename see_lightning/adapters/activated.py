"""Activated LoRA: experts that act from the header that ends every prompt, over the base model's KV cache."""

from collections.abc import Sequence

from see_lightning.config.schema import AdapterConfig
from see_lightning.errors import ConfigError


def check_activated(adapter: AdapterConfig, header_ids: Sequence[int]) -> None:
    """Refuse activated experts if prompts do not all end in the same tokens.

    Args:
        adapter: settings of the adapters, among them whether they are activated.
        header_ids: the tokens that end every prompt; empty if prompts end in different tokens.

    Raises:
        ConfigError: adapters are activated and there is no common header.
    """
    if adapter.activated and not header_ids:
        raise ConfigError(
            "adapter.activated needs prompts that end in the same tokens, from which on experts act; model.prompt=plain and"
            " a chat template without an assistant header end with the query. Choose model.prompt=chat or alpaca, or"
            " adapter=lora."
        )


def check_header(ids: Sequence[int], header_ids: Sequence[int]) -> None:
    """Refuse a prompt that does not end in the tokens from which activated experts act.

    Args:
        ids: the prompt's last tokens.
        header_ids: the expected ones.

    Raises:
        ConfigError: they differ.
    """
    if list(ids) != list(header_ids):
        raise ConfigError(
            f"a prompt ends in the tokens {list(ids)} instead of {list(header_ids)}, from which on the experts act;"
            f" it was cut, or the tokenizer joined its end with what stands before. Use adapter=lora for such prompts."
        )
