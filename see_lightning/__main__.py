"""``python -m see_lightning VERB`` is ``see-lightning VERB``."""

from see_lightning.cli.verbs import main

if __name__ == "__main__":
    main()
