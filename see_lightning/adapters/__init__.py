"""LoRA adapters beside a frozen base model, and caches of what they give."""
