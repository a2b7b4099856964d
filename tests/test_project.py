"""The project's files that repeat one another are in step: pyproject, constraints, environment, make, CI, citation."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from collapse_lib.paper import load_paper

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
CONSTRAINTS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PINS = {canonicalize_name(pin.name): pin for pin in CONSTRAINTS}
DEPENDENCIES = [
    *PROJECT["dependencies"],
    *(each for extra in PROJECT["optional-dependencies"].values() for each in extra),
]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_top_level_has_what_the_readme_promises():
    required = [
        "notebooks",
        "collapse_lib",
        "tests",
        "benchmarks",
        "environment.yml",
        "run_all.py",
        "README.md",
        "LICENSE",
    ]
    assert [name for name in required if not (ROOT / name).exists()] == []


# ---- versions --------------------------------------------------------------------------------------------------------


def test_every_constraint_is_one_exact_version():
    assert [str(pin) for pin in CONSTRAINTS if not re.fullmatch(r"==[\w.]+", str(pin.specifier))] == []
    assert len(PINS) == len(CONSTRAINTS), "a package is pinned twice"


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_every_dependency_is_pinned_within_its_range(dependency):
    wanted = Requirement(dependency)
    assert wanted.specifier, f"{wanted.name} has no lower bound in pyproject.toml"
    pin = PINS[canonicalize_name(wanted.name)]
    assert wanted.specifier.contains(str(pin.specifier).removeprefix("==")), f"{pin} is outside {wanted}"


def test_no_constraint_belongs_to_one_platform():
    """torch pins its own CUDA packages, other ones on other platforms: a pin here would break some of them."""
    assert [name for name in PINS if name.startswith(("nvidia-", "cuda-", "triton"))] == []
    assert [str(pin) for pin in CONSTRAINTS if "+" in str(pin.specifier)] == []


PACKAGES = packages_distributions()
# Modules of packages that come with a declared one, as its other half.
PARTS = {"pydantic_core": "pydantic", "markupsafe": "jinja2", "cycler": "matplotlib", "matplotlib_inline": "ipython"}


def imported_packages(*folders: str) -> dict[str, str]:
    """{package: a file that imports it} of everything that is not Python's own or this project's."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    ours = {file.stem for file in files} | {"collapse_lib"}
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import(names=names):
                    modules = [name.name for name in names]
                case ast.ImportFrom(module=str(module), level=0):
                    modules = [module]
                case _:
                    continue
            for top in {module.partition(".")[0] for module in modules} - ours - set(sys.stdlib_module_names):
                package = PARTS.get(top) or PACKAGES.get(top, [top])[0]
                found[canonicalize_name(package)] = str(file.relative_to(ROOT))
    return found


@pytest.mark.parametrize(
    ("folders", "extras"),
    [(["collapse_lib"], []), (["tests"], ["dev"]), (["benchmarks"], ["bench"])],
    ids=["library", "tests", "benchmarks"],
)
def test_what_is_imported_is_declared(folders, extras):
    """What happens to be installed with something else is missing on the day that it no longer is."""
    texts = PROJECT["dependencies"] + [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    imported = imported_packages(*folders)
    assert {package: imported[package] for package in imported.keys() - declared} == {}


def supported_pythons() -> list[str]:
    return [f"3.{minor}" for minor in range(9, 20) if SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}")]


def test_conda_takes_python_and_pip_from_conda_forge_and_the_project_through_pip():
    environment = read_yaml("environment.yml")
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *from_conda, through_pip = environment["dependencies"]
    assert [re.split(r"[\s=<>]", each)[0] for each in from_conda] == ["python", "pip"]
    assert through_pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}


def test_conda_and_binder_get_the_python_that_the_constraints_were_tested_with():
    """repo2docker starts from the Python of its own pattern below, or else from an older one of its choice."""
    (python,) = [each for each in read_yaml("environment.yml")["dependencies"] if str(each).startswith("python")]
    found = re.match(r"python\s*=+\s*([\d\.]*)", python)
    assert found, f"{python}: repo2docker wants python=3.x"
    assert f"Python {found[1]}" in (ROOT / "constraints.txt").read_text()
    assert found[1] in supported_pythons()


def test_all_say_the_same_range_of_pythons():
    supported = supported_pythons()
    oldest, newest = supported[0], supported[-1]
    makefile = (ROOT / "Makefile").read_text()
    ends = [each.replace(".", ", ") for each in (oldest, newest)]
    assert f"({ends[0]}) <= sys.version_info[:2] <= ({ends[1]})" in makefile
    assert " ".join(f"python{each}" for each in reversed(supported)) in makefile

    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == oldest
    assert f"Python {oldest} to {newest}" in (ROOT / "README.md").read_text()


def test_torch_and_torchvision_are_a_pair():
    """torch 2.n goes with torchvision 0.(n + 15); other pairs fail when they are imported."""
    torch, torchvision = (Version(str(PINS[name].specifier).removeprefix("==")) for name in ("torch", "torchvision"))
    assert (torchvision.major, torchvision.minor) == (0, torch.minor + 15)


# ---- what runs where -------------------------------------------------------------------------------------------------


def test_ci_checks_what_make_test_checks():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    commands = script.read_text()
    assert re.search(r"^make .*\btest\b", commands, flags=re.MULTILINE)
    assert "set -euo pipefail" in commands


def test_make_test_runs_the_unit_tests_and_the_published_notebooks():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^test: unit notebooks$", makefile, flags=re.MULTILINE)
    assert "--nbval-lax" in makefile


def test_make_install_only_installs():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^install: \$\(RUN\)\n\n", makefile, flags=re.MULTILINE)
    assert re.search(r"^\.PHONY:.* install ", makefile, flags=re.MULTILINE)
    assert "@echo 'make install " in makefile


def test_every_document_is_cited_and_in_the_readmes_first_table():
    citation, readme = read_yaml("CITATION.cff"), (ROOT / "README.md").read_text()
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    named = " ".join(map(str, citation["references"]))
    papers = {path.parent.name: load_paper(path).paper for path in ROOT.glob("notebooks/*/paper.toml")}
    assert [paper.url for paper in papers.values() if paper.url.rpartition("/")[2] not in named] == []
    assert len(citation["references"]) == len(papers) >= 4
    assert [folder for folder in papers if f"| `notebooks/{folder}/` |" not in readme] == []
