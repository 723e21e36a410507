"""``python -m see_lightning.extract`` is ``see-lightning extract``."""

from see_lightning.cli.extract import main

if __name__ == "__main__":
    main()
