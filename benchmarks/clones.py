"""Python packages out of clones that the user brings: imported where they lie and forgotten afterwards."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from sdst_runtime.errors import DependencyError, InputError


@dataclass(frozen=True)
class Clone:
    """A repository on GitHub and what its models import."""

    option: str  # of the command line
    repository: str
    proof: str  # a file that a clone has
    packages: Mapping[str, str] = field(default_factory=dict)  # module that its models use -> what pip installs
    unused: tuple[str, ...] = ()  # imported, and not used by what is timed: a stand-in does where they are missing


CLONES = {
    clone.option: clone
    for clone in (
        Clone("moment-detr", "jayleicn/moment_detr", "moment_detr/model.py", unused=("pandas",)),
        Clone("qd-detr", "wjun0830/QD-DETR", "qd_detr/model.py", unused=("pandas",)),
        Clone(
            "lighthouse", "line/lighthouse", "lighthouse/common/moment_detr.py",
            {"yaml": "pyyaml", "einops": "einops"}, ("torchvision", "sklearn"),
        ),
        Clone(
            "r2-tuning", "yeliudev/R2-Tuning", "configs/qvhighlights/r2_tuning_qvhighlights.py",
            {"nncore": "nncore==0.4.7"}, ("clip", "torchvision", "sklearn"),
        ),
    )
}  # fmt: skip


def require_clone(clone: Clone, folder: Path) -> None:
    """Raise InputError unless `folder` is a clone of that repository."""
    if not (folder / clone.proof).is_file():
        raise InputError(
            f"--{clone.option} {folder}: expected a clone of {clone.repository}, it has no {clone.proof}; run"
            f"  git clone https://github.com/{clone.repository} {folder}"
        )


@contextmanager
def importing(clone: Clone, folder: Path) -> Iterator[None]:
    """Imports look into a clone first. Its modules are forgotten at the end: several clones have a package `utils`.

    Raises DependencyError for a package that the clone uses and that is not installed.
    """
    root, stand_ins, before = str(folder.resolve()), _StandIns(clone), set(sys.modules)
    hidden = {name: sys.modules.pop(name) for name in before if _shadows(name, folder)}
    sys.path.insert(0, root)
    sys.meta_path.append(stand_ins)  # asked last: what is installed is taken
    importlib.invalidate_caches()
    try:
        yield
    except ModuleNotFoundError as error:
        package = clone.packages.get((error.name or "").partition(".")[0], error.name)
        raise DependencyError(
            f"{clone.repository} needs {error.name}, which is not installed: pip install {package}"
        ) from error
    finally:
        sys.path.remove(root)
        sys.meta_path.remove(stand_ins)
        for name in set(sys.modules) - before:
            if _lies_in(sys.modules[name], root):
                del sys.modules[name]
        sys.modules.update(hidden)


def _shadows(name: str, folder: Path) -> bool:
    """Whether a loaded module, not of the standard library, would be taken in place of the clone's."""
    top = name.partition(".")[0]
    return top not in sys.stdlib_module_names and ((folder / top).is_dir() or (folder / f"{top}.py").is_file())


def _lies_in(module: ModuleType, root: str) -> bool:
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    return isinstance(module, _StandIn) or any(str(place).startswith(root) for place in places)


class _StandIn(ModuleType):
    """A module that can be imported from and not used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self.__name__}.{name}")


class _Missing:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: object, **__: object) -> Any:
        raise DependencyError(f"{self._name} is called and not installed: install {self._name.partition('.')[0]}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self._name}.{name}")


class _StandIns:
    """Finds what a clone imports and does not use."""

    def __init__(self, clone: Clone) -> None:
        self._names = clone.unused

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None):
        if name.partition(".")[0] not in self._names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # pyright: ignore[reportArgumentType]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""
