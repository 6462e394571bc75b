"""The house itself: which room may import which, and what an import costs.

Every import statement of the source is read, also those inside functions, so that an arrow against the order is found
without running the line that draws it.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.metadata import requires
from pathlib import Path

import pytest
from conftest import LONGEST
from places import ROOT, TESTS

from sdst import __version__
from sdst.cli import VERBS
from sdst_runtime.distribution import DISTRIBUTION, install_command, own_version, requirement

# From the top of the house to the ground floor: a room may import those that come after it, never one before it.
ROOMS = {
    "sdst": ROOT / "sdst",
    "sdst_calib": ROOT / "calib" / "sdst_calib",
    "sdst_export": ROOT / "export" / "sdst_export",
    "sdst_train": ROOT / "sdst_train",
    "sdst_runtime": ROOT / "runtime" / "sdst_runtime",
}
ORDER = list(ROOMS)
FLOORS = (  # of sdst_runtime, from the top; a folder imports its own floor and lower ones
    {"serving", "corpus"},
    {"doctor", "bench"},
    {"grounding", "metrics", "pages"},
    {"data"},
    {"sessions", "media"},
    {""},  # the room's own files
)
IMPORTERS = {
    "import_module",
    "__import__",
    "require_package",
    "require_library",
}  # functions whose first argument names a module
ENGINES = {"tensorrt", "tensorrt_rtx", "pycuda"}  # of extras, for sdst_runtime/sessions/tensorrt and there when used
SERVES = {"fastapi", "starlette", "uvicorn", "prometheus_client"}  # of the extra `serve`
CLUSTER = {"ray", "pyarrow"}  # of the extra corpus, for sdst_runtime/corpus and there when used
HEAVY = {"torch", "onnx", "onnxruntime", "transformers", "scipy", "matplotlib", "tensorboard"} | ENGINES | CLUSTER
SHOWS = {"pandas", "matplotlib"}  # of nobody's extra, for sdst_runtime/showing.py alone and there when used
TRITON = {"tritonclient", "google", "triton_python_backend_utils"}  # for serving/triton; the last is the server's own


def sources(room: str) -> list[Path]:
    return sorted(ROOMS[room].rglob("*.py"))


def module_name(room: str, path: Path) -> str:
    """The dotted name of a file; an `__init__.py` keeps that as its last part."""
    return ".".join((room, *path.relative_to(ROOMS[room]).with_suffix("").parts))


@cache
def imports(source: str, module: str) -> list[tuple[int, str]]:
    """What `imports_in` finds, once for each source: parsing all of them takes a second or two."""
    return list(imports_in(source, module))


def imports_in(source: str, module: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a module imports, at any depth, relative names resolved.

    `module` is the file's dotted name (`room.part.__init__` for a package), so its package is all but the last part.
    """
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            assert base or not node.level, f"{module}, line {node.lineno}: the relative import leaves its package"
            origin = [*base, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join((*origin, alias.name))) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0]
            if called in IMPORTERS and isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def against_the_arrows(source: str, module: str) -> list[str]:
    """One line for each import of a room above the module's own."""
    own = ORDER.index(module.split(".")[0])
    return [
        f"{module}, line {line}: imports {name}, a room above"
        for line, name in imports(source, module)
        if name.split(".")[0] in ORDER[:own]
    ]


# ---------------------------------------------------------------- arrows


@pytest.mark.parametrize("room", ORDER)
def test_no_import_runs_against_the_arrows(room):
    found = [line for path in sources(room) for line in against_the_arrows(path.read_text(), module_name(room, path))]

    assert sources(room), f"{ROOMS[room]} holds no source"
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import sdst_train.model.sdst",
        "from sdst_train.model.sdst import SDST",
        "from sdst_train import model as m",
        "import json, sdst_export.models as models",
        "def late():\n    if True:\n        import sdst_train",
        "import importlib\nimportlib.import_module('sdst_train.model.sdst')",
        "__import__('sdst')",
        "if TYPE_CHECKING:\n    from sdst.cli import main",
    ],
)
def test_the_checker_finds_a_planted_import(line):
    assert len(against_the_arrows(line, "sdst_runtime.sessions.base")) == 1


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("from sdst_runtime.errors import SdstError", "sdst_train.model.sdst"),
        ("from sdst_runtime import Grounder", "sdst.ground"),
        ("from .errors import InputError", "sdst_runtime.sessions.base"),
        ("from . import errors", "sdst_runtime.__init__"),
        ("text = 'sdst_train.model.sdst'", "sdst_runtime.sessions.base"),
    ],
)
def test_the_checker_lets_downward_imports_pass(line, module):
    assert against_the_arrows(line, module) == []


def test_relative_imports_are_resolved():
    source = "from . import a\nfrom .b import c\nfrom .. import d\nfrom ..e.f import g"

    from_module = [name for _, name in imports(source, "room.part.file")]
    from_package = [name for _, name in imports(source, "room.part.__init__")]

    assert from_module == ["room.part.a", "room.part.b.c", "room.d", "room.e.f.g"]
    assert from_package == from_module


def test_runtime_uses_only_what_a_plain_installation_brings():
    plain = {re.split(r"[^\w-]", line)[0].lower() for line in requires(DISTRIBUTION) or [] if "extra ==" not in line}
    allowed = plain | set(sys.stdlib_module_names) | {"sdst_runtime"}
    more = {"tensorrt": ENGINES, "corpus": CLUSTER, "showing.py": SHOWS, "serving": SERVES, "triton": TRITON}
    found = {
        f"{path.name}, line {line}: {name}"
        for path in sources("sdst_runtime")
        for line, name in imports(path.read_text(), module_name("sdst_runtime", path))
        if name.split(".")[0] not in allowed | more.get(path.parent.name, set()) | more.get(path.name, set())
    }

    assert "numpy" in plain
    assert found == set()


# ---------------------------------------------------------------- verbs, floors, circles

MODULES = {module_name(room, path).removesuffix(".__init__"): path for room in ORDER for path in sources(room)}


def our_imports(name: str) -> set[str]:
    """The modules of ours that a module names in its imports; `from package import name` leads to the deepest file."""
    file = f"{name}.__init__" if MODULES[name].name == "__init__.py" else name
    targets = set()
    for _, imported in imports(MODULES[name].read_text(), file):
        while imported and imported not in MODULES:
            imported = imported.rpartition(".")[0]
        targets.add(imported)
    return targets - {"", name}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files of which each leads to all others."""
    reached = {}
    for start in arrows:
        reached[start], waiting = set(), [start]
        while waiting:
            new = arrows[waiting.pop()] - reached[start]
            reached[start] |= new
            waiting += new
    groups = {frozenset(other for other in reached[one] if one in reached[other]) for one in arrows}
    return sorted(sorted(group) for group in groups if group)


def test_no_verb_imports_another_verb():
    verbs = {where.split(":")[0] for where, _, _ in VERBS.values()}
    crossed = {verb: our_imports(verb) & (verbs - {verb}) for verb in verbs}

    assert len(verbs) > 10
    assert {verb: others for verb, others in crossed.items() if others} == {}


def test_no_circle_of_files():
    assert circles({name: our_imports(name) for name in MODULES}) == []


def test_the_checker_finds_a_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]


def folder_of(module: str) -> str:
    """The folder of sdst_runtime that a module is in; "" for the room's own files."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOMS["sdst_runtime"] / parts[1]).is_dir() else ""


def test_the_floors_of_the_runtime():
    floors = {folder: number for number, folders in enumerate(FLOORS) for folder in folders}
    runtime = [name for name in MODULES if name.startswith("sdst_runtime.")]  # its __init__ names parts for others
    wrong = [
        f"{name} imports {other}"
        for name in runtime
        for other in our_imports(name)
        if (own := folder_of(name)) != (their := folder_of(other)) and floors[own] > floors[their]
    ]

    assert {folder_of(name) for name in runtime} <= set(floors)
    assert folder_of("sdst_runtime.grounding.bundle") == "grounding"
    assert folder_of("sdst_runtime.files") == ""
    assert wrong == []


def test_every_folder_says_what_it_is_for():
    folders = [path for path in MODULES.values() if path.name == "__init__.py"]
    lengths = {str(path): len((ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()) for path in folders}

    assert {path: lines for path, lines in lengths.items() if not 1 <= lines <= 3} == {}


def test_the_longest_files_of_tests_are_there():
    assert [name for name in LONGEST if not (TESTS / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)


# ---------------------------------------------------------------- the name


def test_the_index_is_never_asked_for_another_projects_package():
    """`sdst` there is not ours: nothing installs it, and nothing asks for its version."""
    wrong = re.compile(r"""\bsdst\[|pip install (-\S+ )*['"]?sdst\b(?!-)|\bversion\(["']sdst["']\)""")
    files = [path for room in ORDER for path in sources(room)]
    files += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [
        f"{path.relative_to(ROOT)}, line {number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if wrong.search(line)
    ]

    assert wrong.search("pip install -U 'sdst[train]'")
    assert wrong.search("pip install sdst")
    assert not wrong.search("pip install sdst-vtg")
    assert found == []


def test_the_distribution_has_one_name():
    assert re.search(rf'^name = "{DISTRIBUTION}"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert own_version() == __version__
    assert requirement("pydantic").startswith("pydantic>=")
    assert requirement("torch") == "torch"  # an extra brings it
    assert install_command("train") == "run  pip install '.[train]'  in the project's checkout"
    assert install_command() == "run  pip install .  in the project's checkout"


def test_class_variables_say_their_type():
    """pydantic on Python 3.10 refuses a bare ClassVar when the dataclass is first used."""
    annotations = [
        (path, node)
        for room in ORDER
        for path in sources(room)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AnnAssign) and "ClassVar" in ast.unparse(node.annotation)
    ]
    bare = {f"{path.name}, line {n.lineno}" for path, n in annotations if "ClassVar[" not in ast.unparse(n.annotation)}

    assert len(annotations) >= 2
    assert bare == set()


def test_every_folder_of_source_is_a_package():
    missing = {
        str(path.parent.relative_to(ROOT))
        for room in ORDER
        for path in sources(room)
        if not (path.parent / "__init__.py").is_file()
    }

    assert missing == set()


# ---------------------------------------------------------------- what an import costs


@pytest.mark.parametrize(
    "line", ["import sdst_runtime", "from sdst_runtime import Grounder", "from sdst import Grounder", "import sdst.cli"]
)
def test_import_pulls_in_nothing_heavy(line):
    assert loaded_by(line) & HEAVY == set()


def test_the_front_door_is_light():
    assert loaded_by("import sdst, sdst_runtime") & {*HEAVY, "numpy", "tyro", "rich"} == set()


def test_every_name_of_the_runtime_is_at_the_front_door():
    import sdst
    import sdst_runtime

    assert sdst.__all__ == sdst_runtime.__all__
    assert all(getattr(sdst, name) is getattr(sdst_runtime, name) for name in sdst.__all__)


def test_grounding_loads_no_torch():
    assert loaded_by("import sdst.ground") & {"torch", "transformers", "onnx", "scipy", *ORDER} == {
        "sdst",
        "sdst_runtime",
    }


def loaded_by(line: str) -> set[str]:
    """Top-level names in sys.modules after a line, in a fresh interpreter."""
    done = run(sys.executable, "-c", f"{line}\nimport sys\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


# ---------------------------------------------------------------- the command


def test_help_lists_the_verbs():
    done = run(str(Path(sysconfig.get_path("scripts")) / "sdst"), "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^  ([\w-]+(?: \w+)?)  ", done.stdout, re.MULTILINE) == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_leads_to_a_function(verb):
    module, name = VERBS[verb][0].split(":")

    assert callable(getattr(importlib.import_module(module), name))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
