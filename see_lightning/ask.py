"""``python -m see_lightning.ask`` is ``see-lightning ask``."""

from see_lightning.cli.ask import main

if __name__ == "__main__":
    main()
