"""``python -m see_lightning.lm_eval`` is ``see-lightning lm-eval``."""

from see_lightning.cli.lm_eval import main

if __name__ == "__main__":
    main()
