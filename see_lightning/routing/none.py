"""No router: the method has one model, which answers everything."""

from see_lightning.errors import ConfigError
from see_lightning.routing.router import Router
from see_lightning.tasks.batches import Queries


class NoRouter(Router):
    """For methods without experts."""

    needs = frozenset()

    def route(self, queries: Queries) -> list[str | None]:
        """The method's only adapter, or the base model.

        Raises:
            ConfigError: the method names no adapter by which it answers.
        """
        if not hasattr(self.method, "ADAPTER"):
            raise ConfigError(
                f"the method {type(self.method).__name__} does not tell who would answer a query (Method.route)."
            )
        return [self.method.ADAPTER] * len(queries)
