"""Puts conf/ into the package when it is built, for in a clone it lies beside it; all else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConf(build_py):
    """Builds the package with its configurations."""

    def run(self) -> None:
        """As setuptools calls it."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib) / "see_lightning" / "conf", dirs_exist_ok=True)


setup(cmdclass={"build_py": WithConf})
