"""``python -m see_lightning.runs`` is ``see-lightning runs``."""

from see_lightning.cli.runs import main

if __name__ == "__main__":
    main()
