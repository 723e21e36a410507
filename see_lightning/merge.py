"""``python -m see_lightning.merge`` is ``see-lightning merge``."""

from see_lightning.cli.merge import main

if __name__ == "__main__":
    main()
