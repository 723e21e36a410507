"""``python -m see_lightning.perplexity`` is ``see-lightning perplexity``."""

from see_lightning.cli.perplexity import main

if __name__ == "__main__":
    main()
