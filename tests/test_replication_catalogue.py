"""The catalogue: whatever is wrong with the notebooks is told at once, before anything runs or is written."""

from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replication_notebooks import PARAMETERS, Papers

from collapse_lib.replication import catalogue, cli, parameters
from collapse_lib.replication.catalogue import CatalogueError, PatternError
from collapse_lib.replication.parameters import ParameterError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = scalars | st.lists(scalars)


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    papers = Papers(tmp_path / "notebooks")
    papers.add("alpha/first")
    papers.add("alpha/second")
    papers.add("beta/third")
    return papers


def problems(papers: Papers) -> list[str]:
    with pytest.raises(CatalogueError) as caught:
        catalogue.load(papers.root)
    return caught.value.problems


def test_a_notebook_has_its_constants_and_the_overrides_in_their_types(papers: Papers) -> None:
    first = catalogue.load(papers.root)[0]
    assert first.key == "alpha/first"
    assert first.defaults == {
        "profile": "paper",
        "dataset": "mnist",
        "device": "auto",
        "n_images": 1000,
        "lr": 1e-3,
        "betas": [0.5, 1],
    }
    assert first.overrides["paper"] == {}
    assert first.overrides["laptop"] == {"profile": "laptop"}
    smoke = first.overrides["smoke"]
    assert smoke == {"profile": "smoke", "dataset": "digits", "n_images": 10, "lr": 1.0}
    assert isinstance(smoke["lr"], float)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("alpha", ["alpha/first", "alpha/second"]),
        ("third", ["beta/third"]),
        ("*/f*", ["alpha/first"]),
        ("alpha/second", ["alpha/second"]),
        ("alpha/first.ipynb", ["alpha/first"]),
        ("../notebooks/beta/third.ipynb", ["beta/third"]),
    ],
)
def test_a_pattern_is_a_glob_or_a_part(papers: Papers, pattern: str, found: list[str]) -> None:
    assert [each.key for each in catalogue.select(catalogue.load(papers.root), [pattern])] == found


def test_no_pattern_selects_all_and_several_keep_the_order(papers: Papers) -> None:
    notebooks = catalogue.load(papers.root)
    assert catalogue.select(notebooks, []) == notebooks
    assert catalogue.select(notebooks, ["third", "first"]) == [notebooks[0], notebooks[2]]


def test_an_unknown_pattern_is_told_with_what_was_meant(papers: Papers) -> None:
    notebooks = catalogue.load(papers.root)
    with pytest.raises(PatternError, match=r"'xyz'; run_all.py --list shows them$"):
        catalogue.select(notebooks, ["first", "xyz"])
    for wrong in ("thrid", "beta/thrid", "thrid.ipynb"):
        with pytest.raises(PatternError, match=r"shows them; did you mean beta/third\?"):
            catalogue.select(notebooks, [wrong])
    with pytest.raises(PatternError, match=r"no notebook matches 'notebooks/beta/first.ipynb'"):
        catalogue.select(notebooks, ["notebooks/beta/first.ipynb"])


def test_everything_wrong_is_told_at_once(papers: Papers) -> None:
    (papers.root / "alpha" / "stray.ipynb").write_text("{}")
    (papers.root / "beta" / "third.ipynb").unlink()
    papers.add("alpha/first", smoke="n_image = 3\nlr = 'fast'")
    told = problems(papers)
    assert len(told) == 4
    for part in ("no entry for stray.ipynb", "smoke.n_image: reaches no parameter", "smoke.lr = 'fast': is a string"):
        assert sum(part in each for each in told) == 1
    assert "[notebooks.third] has no notebook third.ipynb" in told[-1]


def test_notebooks_without_a_paper_file(papers: Papers) -> None:
    (papers.root / "alpha" / "paper.toml").unlink()
    assert [each.split(":")[0] for each in problems(papers)] == [str(papers.root / "alpha" / "paper.toml")] * 2
    with pytest.raises(CatalogueError, match=r"no \*/paper.toml"):
        catalogue.load(papers.root / "alpha")


def test_a_malformed_paper_file_is_told_with_its_line(papers: Papers) -> None:
    toml = papers.root / "beta" / "paper.toml"
    lines = toml.read_text().splitlines()
    number = lines.index("figures = 1")
    lines[number] = "figures = 'one'"
    toml.write_text("\n".join(lines))
    (told,) = problems(papers)
    assert told.startswith(f"{toml}:{number + 1}: ")


@pytest.mark.parametrize(
    ("smoke", "told"),
    [
        ("n_images = 10.5", "smoke.n_images = 10.5: is a float, the notebook has an int"),
        ("n_images = true", "smoke.n_images = True: is a bool, the notebook has an int"),
        ("dataset = 3", "smoke.dataset = 3: is an int, the notebook has a string"),
        ("betas = 0.5", "smoke.betas = 0.5: is a float, the notebook has a list"),
        ("betas = ['a']", "smoke.betas = ['a']: is a string, the notebook has a float"),
        ("lr = [1]", "smoke.lr = [1]: is a list, the notebook has a float"),
    ],
)
def test_an_override_of_another_type(papers: Papers, smoke: str, told: str) -> None:
    papers.add("beta/third", smoke=smoke)
    (problem,) = problems(papers)
    assert problem.endswith(told)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (PARAMETERS.replace('device = "auto"', ""), "no parameter 'device'"),
        (PARAMETERS.replace('"paper"', '"smoke"'), "profile must be 'paper'"),
        (PARAMETERS.replace('"auto"', '"tpu"'), "device must be 'auto', 'cpu' or 'cuda'"),
        (PARAMETERS + "sizes = (1, 2)", "line 7: sizes is no number, string or list of these"),
        (PARAMETERS + "n = 2 * n_images", "line 7: n is no number"),
        (PARAMETERS + "lr = 1", "line 7: lr is assigned twice"),
        (PARAMETERS + "import math", "line 7: not of the form `name = literal`"),
        (PARAMETERS + "a, b = 1, 2", "line 7: not of the form `name = literal`"),
        (PARAMETERS + "x = ", "line 7: invalid syntax"),
    ],
)
def test_parameters_that_are_no_flat_constants(papers: Papers, source: str, told: str) -> None:
    path = papers.add("beta/third", parameters=source)
    (problem,) = problems(papers)
    assert problem.startswith(f"{path}: ")
    assert told in problem


@pytest.mark.parametrize("number", [0, 2])
def test_exactly_one_cell_is_tagged_parameters(papers: Papers, number: int) -> None:
    path = papers.root / "beta" / "third.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells[1:3]:
        cell.metadata.tags = ["parameters"] if number else []
    nbformat.write(notebook, path)
    (problem,) = problems(papers)
    assert problem == f"{path}: {number} cells are tagged 'parameters'; tag exactly one code cell"


def test_a_notebook_without_a_checked_cell_or_that_is_no_notebook(papers: Papers) -> None:
    path = papers.root / "alpha" / "second.ipynb"
    path.write_text(path.read_text().replace("nbval-check-output", "other"))
    broken = papers.root / "beta" / "third.ipynb"
    broken.write_text('{"cells": []')
    told = problems(papers)
    assert "no cell is tagged nbval-check-output" in told[0]
    assert told[1].startswith(f"{broken}: not a notebook")


def test_the_data_set_of_the_entry_is_that_of_the_parameters(papers: Papers) -> None:
    papers.entries["beta"]["third"] = papers.entries["beta"]["third"].replace(
        "figures = 1", 'figures = 1\ndataset = "olivetti"'
    )
    papers.write_toml()
    (problem,) = problems(papers)
    assert "dataset is 'olivetti', third.ipynb has 'mnist'" in problem


def test_run_all_tells_all_problems_and_writes_nothing(
    papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    papers.add("alpha/first", smoke="n_image = 3")
    (papers.root / "beta" / "third.ipynb").unlink()
    out = tmp_path / "out"
    assert cli.main(["--notebooks", str(papers.root), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "smoke.n_image: reaches no parameter" in told
    assert "[notebooks.third] has no notebook" in told
    assert not out.exists()


@given(st.dictionaries(st.from_regex(r"x_[a-z]{1,5}", fullmatch=True), values))
def test_constants_are_read_as_python_reads_them(constants: dict[str, parameters.Value]) -> None:
    source = "\n".join(f"{name} = {value!r}  # why" for name, value in constants.items())
    assert parameters.parse(PARAMETERS + source).values.items() >= constants.items()
    assert parameters.parse(PARAMETERS + source).problems == []


@given(scalars, scalars.filter(lambda value: value is not None))
def test_a_value_takes_the_type_of_the_constant_or_is_refused(
    value: parameters.Scalar, default: parameters.Scalar
) -> None:
    if type(value) is type(default) or (type(value) is int and type(default) is float and abs(value) < 2**53):
        fitted = parameters.fit(value, default)
        assert type(fitted) is type(default)
        assert fitted == value
    elif (type(value), type(default)) != (int, float):
        with pytest.raises(ParameterError):
            parameters.fit(value, default)
