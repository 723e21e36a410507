"""``python -m see_lightning.figures`` is ``see-lightning figures``."""

from see_lightning.cli.figures import main

if __name__ == "__main__":
    main()
