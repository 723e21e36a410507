"""``python -m see_lightning.instruct_transfer`` is ``see-lightning instruct-transfer``."""

from see_lightning.cli.instruct_transfer import main

if __name__ == "__main__":
    main()
