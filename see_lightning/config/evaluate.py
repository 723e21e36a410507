"""Settings of the engine that answers test queries."""

from dataclasses import dataclass

from see_lightning.config.checks import one_of, within
from see_lightning.errors import ConfigError


@dataclass
class EvaluateConfig:
    """Who computes the responses of experts to test queries."""

    engine: str = "local"  # local, this process; vllm, a server of vLLM
    url: str = "http://localhost:8000/v1"  # of the server
    check: int = 8  # test queries of each stage that both answer, before the server is trusted
    tolerance: float = 0.1  # share of these that may go to another expert, 0..1
    text_tolerance: float = 0.5  # share of these whose text may differ, 0..1; in bf16 some do

    def __post_init__(self) -> None:
        one_of("evaluate.engine", self.engine, ("local", "vllm"))
        within("evaluate.check", self.check, 1)
        within("evaluate.tolerance", self.tolerance, 0, 1)
        within("evaluate.text_tolerance", self.text_tolerance, 0, 1)
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"evaluate.url={self.url} must begin with http:// or https://, such as {EvaluateConfig.url}"
            )
