"""``python -m see_lightning.harness`` is ``see-lightning harness``."""

from see_lightning.cli.harness import main

if __name__ == "__main__":
    main()
