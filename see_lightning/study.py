"""``python -m see_lightning.study`` is ``see-lightning study``."""

from see_lightning.cli.study import main

if __name__ == "__main__":
    main()
