"""``python -m see_lightning.calibrate`` is ``see-lightning calibrate``."""

from see_lightning.cli.calibrate import main

if __name__ == "__main__":
    main()
