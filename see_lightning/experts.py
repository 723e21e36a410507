"""``python -m see_lightning.experts`` is ``see-lightning experts``."""

from see_lightning.cli.experts import main

if __name__ == "__main__":
    main()
