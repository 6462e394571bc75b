"""What the wheel holds: the rooms, their data and the sources of the compiled op."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile

import pytest
from places import ROOT
from test_architecture import ORDER, ROOMS, sources


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Names of the files in a wheel built from a copy of the source, so that nothing left in build/ slips in."""
    place = tmp_path_factory.mktemp("wheel")
    copy = place / "source"
    for room in ROOMS.values():
        shutil.copytree(room, copy / room.relative_to(ROOT), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "plugins", copy / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = place.glob("sdst_vtg-*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_module(wheel):
    wanted = {f"{room}/{path.relative_to(ROOMS[room]).as_posix()}" for room in ORDER for path in sources(room)}

    assert wanted - wheel == set()


def test_wheel_holds_package_data(wheel):
    wanted = {
        "sdst_runtime/py.typed",
        "sdst_runtime/pages/templates/report.html",
        "sdst/demo/assets/tiny_backbone.safetensors",
    }
    for room, folder in (
        ("sdst", "demo/assets"),
        ("sdst_runtime", "pages/templates"),
        ("sdst_runtime", "sessions/assets"),
        ("sdst_runtime", "doctor/assets"),
        ("sdst_runtime", "serving/page"),
    ):
        wanted |= {f"{room}/{folder}/{path.name}" for path in (ROOMS[room] / folder).glob("*") if path.is_file()}

    assert wanted - wheel == set()


def test_wheel_holds_the_sources_of_the_compiled_op(wheel):
    folders = ("cmake", "dev", "examples", "include", "src", "tensorrt", "triton")
    files = [path for folder in folders for path in (ROOT / "plugins" / folder).rglob("*") if path.is_file()]
    shipped = {name for name in wheel if name.startswith("sdst/plugin_sources/")}

    assert {f"sdst/plugin_sources/{path.relative_to(ROOT).as_posix()}" for path in files} <= shipped
    assert "sdst/plugin_sources/CMakeLists.txt" in shipped
    assert not any(name.startswith("sdst/plugin_sources/plugins/tests/") for name in shipped)


def test_wheel_holds_the_rooms_and_nothing_else(wheel):
    top = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}

    assert top == set(ORDER)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
