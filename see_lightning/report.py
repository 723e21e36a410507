"""``python -m see_lightning.report`` is ``see-lightning report``."""

from see_lightning.cli.report import main

if __name__ == "__main__":
    main()
