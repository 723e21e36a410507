"""The sub-experts of all tasks, parts of shared adapters, and the centroids by which a query's task is inferred."""

from collections.abc import Sequence
from pathlib import Path

from see_lightning.adapters.files import read, read_tensors, write_tensors
from see_lightning.adapters.pool import ExpertPool
from see_lightning.methods.subnetworks.mixture import LayerMask, SubExpert, TrainableSubnetwork
from see_lightning.methods.subnetworks.shared_adapter import SharedAdapter
from see_lightning.routing.router import Router

FILE = "subexpert.safetensors"  # in the folder of the task's adapter


class SubExperts:
    """The sub-expert and the key of each task.

    Args:
        pool: the base model and the shared adapters.
        keys: the router that holds a key for each task.
        k: number of experts that a token is routed to.
    """

    def __init__(self, pool: ExpertPool, keys: Router, k: int = 1) -> None:
        self.pool, self.keys, self.k = pool, keys, k
        self.of: dict[str, SubExpert] = {}

    def keep(
        self, task: str, learned: TrainableSubnetwork, shared: SharedAdapter, prompts: Sequence[Sequence[int]]
    ) -> None:
        """Fix the masks of a trained task, protect the weights that it uses, and learn its key.

        Args:
            task: its name.
            learned: its scores and routers.
            shared: the adapter that it is a part of.
            prompts: token ids of its training prompts, from which the key is computed.
        """
        masks = [learned.mask(layer).fixed() for layer in self.pool.layers]
        shared.take(masks)
        self._register(SubExpert(self.pool, shared.name, masks, list(learned.routers), k=self.k), task)
        self.keys.learn(task, prompts)

    def _register(self, part: SubExpert, task: str) -> None:
        self.of[task] = part
        self.pool.register(task, part)

    def storage(self) -> dict[str, int]:
        """Bytes of masks, one bit for each entry, of routers and of keys."""
        parts = self.of.values()
        masks = [mask for part in parts for layer_mask in part.masks.values() for mask in layer_mask.kept().values()]
        routers = [router for part in parts for router in part.routers.values()]
        return {
            "masks": sum(-(-mask.numel() // 8) for mask in masks),
            **({"routers": sum(router.nbytes for router in routers)} if routers else {}),
            "keys": self.keys.nbytes(),
        }

    def save(self, task: str, folder: Path) -> None:
        """Write a task's masks, routers and key; the weights are in the PEFT files."""
        write_tensors(self.keys.state(task) | self.of[task].tensors(), folder / FILE)

    def restore(self, task: str, shared: SharedAdapter, folder: Path) -> None:
        """Load a task's sub-expert and key, and protect the weights that it uses; called for the oldest task first.

        Args:
            task: its name.
            shared: the adapter that it is a part of.
            folder: of the task's adapter.
        """
        pairs, tensors = read(self.pool, shared.name, folder), read_tensors(folder / FILE)
        masks, routers = [], []
        for place, (a, b) in enumerate(pairs.values()):
            masks.append(LayerMask.read(tensors, f"{place}.", a.shape, b.shape, self.pool.device()))
            if f"{place}.router" in tensors:
                routers.append(tensors[f"{place}.router"].to(self.pool.device()))
        shared.give(masks, pairs.values())
        self._register(SubExpert(self.pool, shared.name, masks, routers, k=self.k), task)
        self.keys.load_state(task, {"key": tensors["key"]})
