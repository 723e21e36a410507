"""Run an experiment: ``python run.py method=see order=superni_5 ratio=0.1``. See ``python run.py --help``."""

from see_lightning.cli.run import main

if __name__ == "__main__":
    main()
