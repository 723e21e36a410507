"""``python -m see_lightning.data`` is ``see-lightning data``."""

from see_lightning.cli.data import main

if __name__ == "__main__":
    main()
