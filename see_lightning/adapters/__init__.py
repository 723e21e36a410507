"""LoRA adapters on a frozen base model: training, composition, files, and a cache of their responses."""
