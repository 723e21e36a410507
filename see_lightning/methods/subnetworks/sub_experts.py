"""What tasks have learned as parts of shared adapters: a sub-expert each, and the key by which a query's task is inferred."""

from collections.abc import Sequence
from pathlib import Path

from see_lightning.adapters.files import read, read_tensors, write_tensors
from see_lightning.adapters.pool import ExpertPool
from see_lightning.methods.subnetworks.mixture import LayerMask, SubExpert, TrainableSubnetwork
from see_lightning.methods.subnetworks.shared_adapter import SharedAdapter
from see_lightning.routing.router import Router

FILE = "subexpert.safetensors"  # beside the part of the adapter that the task uses


class SubExperts:
    """Of each task its sub-expert and its key.

    Args:
        pool: the base model and the shared adapters.
        keys: of the tasks.
        k: experts that a token goes to.
    """

    def __init__(self, pool: ExpertPool, keys: Router, k: int = 1) -> None:
        self.pool, self.keys, self.k = pool, keys, k
        self.of: dict[str, SubExpert] = {}

    def keep(
        self, task: str, learned: TrainableSubnetwork, shared: SharedAdapter, prompts: Sequence[Sequence[int]]
    ) -> None:
        """A task has been learned: its masks are final, and it owns what it uses.

        Args:
            task: its name.
            learned: its scores and routers.
            shared: the adapter that it is a part of.
            prompts: that it was trained on; the base model reads them for its key.
        """
        masks = [learned.mask(layer).fixed() for layer in self.pool.layers]
        shared.take(masks)
        self._speak(SubExpert(self.pool, shared.name, masks, list(learned.routers), k=self.k), task)
        self.keys.learn(task, prompts)

    def _speak(self, part: SubExpert, task: str) -> None:
        self.of[task] = part
        self.pool.register(task, part)

    def storage(self) -> dict[str, int]:
        """Bytes of masks, at a bit a place, of routers and of keys."""
        parts = self.of.values()
        masks = [mask for part in parts for layer_mask in part.masks.values() for mask in layer_mask.kept().values()]
        routers = [router for part in parts for router in part.routers.values()]
        return {
            "masks": sum(-(-mask.numel() // 8) for mask in masks),
            **({"routers": sum(router.nbytes for router in routers)} if routers else {}),
            "keys": self.keys.nbytes(),
        }

    def save(self, task: str, folder: Path) -> None:
        """Write a task's masks, routers and key; the pool writes the weights."""
        write_tensors(self.keys.state(task) | self.of[task].tensors(), folder / FILE)

    def restore(self, task: str, shared: SharedAdapter, folder: Path) -> None:
        """Take up what was written of a task, oldest task first, and with it all that later ones must not move.

        Args:
            task: its name.
            shared: the adapter that it is a part of.
            folder: where the pool and ``save`` have written.
        """
        pairs, tensors = read(self.pool, shared.name, folder), read_tensors(folder / FILE)
        masks, routers = [], []
        for place, (a, b) in enumerate(pairs.values()):
            masks.append(LayerMask.read(tensors, f"{place}.", a.shape, b.shape, self.pool.device()))
            if f"{place}.router" in tensors:
                routers.append(tensors[f"{place}.router"].to(self.pool.device()))
        shared.give(masks, pairs.values())
        self._speak(SubExpert(self.pool, shared.name, masks, routers, k=self.k), task)
        self.keys.load_state(task, {"key": tensors["key"]})
