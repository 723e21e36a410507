"""``python -m see_lightning.compare`` is ``see-lightning compare``."""

from see_lightning.cli.compare import main

if __name__ == "__main__":
    main()
