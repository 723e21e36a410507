"""``python -m see_lightning.leaderboard`` is ``see-lightning leaderboard``."""

from see_lightning.cli.leaderboard import main

if __name__ == "__main__":
    main()
