"""The project as somebody else gets it: a copy of its files, and the library installed without the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PUBLISHED = ("collapse_lib", "notebooks", "LICENSE", "README.md", "environment.yml", "pyproject.toml")


def copy_project(target: Path) -> Path:
    """The project's files at `target`, without what runs left among them; returns it."""
    target.mkdir()
    for name in PUBLISHED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, target)
    return target


def install_wheel(scratch: Path) -> Path:
    """Builds the library's wheel in `scratch` and unpacks it there; returns the folder for the module search path."""
    project, wheels, site = copy_project(scratch / "project"), scratch / "wheels", scratch / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    # With the setuptools that is here: an isolated build would download one.
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels), str(project)])
    (wheel,) = wheels.glob("collapse_lib-*.whl")
    run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)])
    shutil.rmtree(project)
    return site


def environment(*paths: Path) -> dict[str, str]:
    """The variables of a process that finds modules in `paths` first, and executables beside this Python."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PATH": search, "OMP_NUM_THREADS": "1"}


def run(command: list[str], **options: object) -> str:
    """The output of a command; an AssertionError with all that it printed if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)
