"""The one thing that pyproject.toml cannot say: the wheel holds what `sdst plugins build` compiles.

CMakeLists.txt and plugins/ lie outside of every package; they are copied into sdst/plugin_sources as the wheel is made.
In a checkout that is installed with -e nothing is copied: the command finds them where they are.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
LEFT_OUT = ("tests", "__pycache__")  # of plugins/; the build asks for none of it


class BuildWithSources(build_py):
    """build_py, and the sources of the compiled op."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        place = Path(self.build_lib) / "sdst" / "plugin_sources"
        shutil.rmtree(place, ignore_errors=True)  # what an older build left
        shutil.copytree(ROOT / "plugins", place / "plugins", ignore=shutil.ignore_patterns(*LEFT_OUT))
        shutil.copy(ROOT / "CMakeLists.txt", place)


setup(cmdclass={"build_py": BuildWithSources})
