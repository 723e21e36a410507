"""``python -m see_lightning COMMAND`` is ``see-lightning COMMAND``."""

from see_lightning.cli.verbs import main

if __name__ == "__main__":
    main()
