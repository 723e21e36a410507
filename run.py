"""Run an experiment: ``python run.py method=see order=superni_5 ratio=0.1``. See ``python run.py --help``."""

import os
import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from see_lightning.config import register
from see_lightning.refusals import REFUSED, explain

register()
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, to be told in one line


@hydra.main(version_base="1.3", config_path="conf", config_name="run")
def main(cfg: DictConfig) -> None:
    """Check the configuration, then import torch and begin."""
    from see_lightning.config import validate

    validate(cfg)
    from see_lightning.engine.launch import launch

    # What Hydra took, so that a job of a multirun is recorded as the command that repeats it alone.
    launch(cfg, shlex.join(["python", "run.py", *HydraConfig.get().overrides.task]))


if __name__ == "__main__":
    try:
        main()
    except REFUSED as error:
        sys.exit(f"error: {explain(error)}")
