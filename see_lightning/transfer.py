"""``python -m see_lightning.transfer`` is ``see-lightning transfer``."""

from see_lightning.cli.transfer import main

if __name__ == "__main__":
    main()
