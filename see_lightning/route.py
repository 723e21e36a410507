"""``python -m see_lightning.route`` is ``see-lightning route``."""

from see_lightning.cli.route import main

if __name__ == "__main__":
    main()
