"""``python -m see_lightning.serve`` is ``see-lightning serve``."""

from see_lightning.cli.serve import main

if __name__ == "__main__":
    main()
