"""``python -m see_lightning.publish`` is ``see-lightning publish``."""

from see_lightning.cli.publish import main

if __name__ == "__main__":
    main()
