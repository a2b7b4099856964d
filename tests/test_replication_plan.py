"""What is run again and what is not: a result stands until something that it depends on changes."""

import errno
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_output
from replication_notebooks import PNG, Papers

from collapse_lib.ledger import MIME
from collapse_lib.replication import catalogue, cli, fingerprint, notebook_file, outcome, plan
from collapse_lib.replication.folder import Folder
from collapse_lib.replication.outcome import State
from collapse_lib.replication.plan import METADATA, Planned, Settings, Task

SMOKE = Settings("smoke")


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    papers = Papers(tmp_path / "notebooks")
    papers.add("one/only")
    return papers


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "out")


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum of data is that of its name; tests/data_sets holds the true ones."""
    monkeypatch.setattr(fingerprint, "data", lambda parameters: f"sum of {parameters['dataset']}")


def task_of(papers: Papers, settings: Settings = SMOKE) -> Task:
    (notebook,) = catalogue.load(papers.root)
    return plan.task(notebook, settings)


def task_of_key(papers: Papers, key: str) -> Task:
    (notebook,) = catalogue.select(catalogue.load(papers.root), [key])
    return plan.task(notebook, SMOKE)


def executed(task: Task) -> nbformat.NotebookNode:
    """The notebook of `task` as a run leaves it: a figure, a ledger, a verdict."""
    notebook = nbformat.read(task.notebook.path, as_version=4)
    for count, cell in enumerate(notebook_file.code_cells(notebook), start=1):
        cell["execution_count"] = count
    *_, figure, ledger, verdicts = notebook.cells
    figure.outputs = [new_output("display_data", {"image/png": PNG})]
    measured = {"n": 1, "mean": 10.0, "min": 10.0, "max": 10.0}
    claim = {"id": "A-1", "text": "t", "kind": "mechanism", "expected": {"min": 1.0}, "judge": "every"}
    record = {
        "notebook": task.key,
        "profile": task.parameters["profile"],
        "dataset": task.parameters["dataset"],
        "claims": [claim | {"verdict": "holds", "measured": measured}],
    }
    ledger.outputs = [new_output("display_data", {MIME: record})]
    verdicts.outputs = [new_output("stream", name="stdout", text="A-1 holds: t\n")]
    notebook.metadata[METADATA] = {
        "fingerprint": {**task.fingerprint, "data": fingerprint.data(task.parameters)},
        "seconds": 8.5,
    }
    return notebook


def leave_result(task: Task, folder: Folder) -> Path:
    path = folder.result(task.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(executed(task), path)
    return path


def look_up(papers: Papers, folder: Folder, settings: Settings = SMOKE, *, force: bool = False) -> Planned:
    return plan.look_up(task_of(papers, settings), folder, force=force)


def test_a_result_stands_while_nothing_has_changed(papers: Papers, folder: Folder) -> None:
    before = look_up(papers, folder)
    assert (before.standing.state, before.why, before.estimate) == (State.NOT_RUN, "no result yet", None)
    path = leave_result(task_of(papers), folder)
    after = look_up(papers, folder)
    assert (after.standing.state, after.why, after.estimate) == (State.CACHED, "", 8.5)
    assert after.standing.result == path
    assert after.standing.good
    assert look_up(papers, folder, force=True).why == "forced"


def change_source(papers: Papers) -> None:
    path = papers.root / "one" / "only.ipynb"
    path.write_text(path.read_text().replace("# A test", "# Another test"))


def change_tag(papers: Papers) -> None:
    path = papers.root / "one" / "only.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].metadata.tags = ["nbval-check-output"]
    nbformat.write(notebook, path)


@pytest.mark.parametrize("change", [change_source, change_tag])
def test_an_edited_notebook_is_stale(papers: Papers, folder: Folder, change) -> None:
    leave_result(task_of(papers), folder)
    change(papers)
    planned = look_up(papers, folder)
    assert (planned.standing.state, planned.why, planned.estimate) == (State.STALE, "changed: notebook", 8.5)
    assert planned.standing.result is None


def test_outputs_counts_and_old_injected_parameters_change_nothing(papers: Papers, folder: Folder) -> None:
    leave_result(task_of(papers), folder)
    notebook = executed(task_of(papers))
    cell = nbformat.v4.new_code_cell("n_images = 7", metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(2, cell)
    nbformat.write(notebook, papers.root / "one" / "only.ipynb")
    assert look_up(papers, folder).why == ""


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"smoke": 'dataset = "digits"\nn_images = 11'}, "changed: parameters"),
        ({"expected": "{min = 2}"}, "changed: paper.toml"),
        ({"figures": 0}, "changed: paper.toml"),
        ({"timeout": 7}, ""),
        ({"extra": "[notebooks.only.profiles.laptop]\nn_images = 3\n"}, ""),
    ],
)
def test_what_of_its_entry_a_result_depends_on(papers: Papers, folder: Folder, entry: dict, why: str) -> None:
    leave_result(task_of(papers), folder)
    papers.add("one/only", **entry)
    assert look_up(papers, folder).why == why


def test_a_changed_library_makes_a_result_stale_but_a_changed_runner_does_not(
    papers: Papers, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "collapse_lib"
    (library / "replication").mkdir(parents=True)
    monkeypatch.setattr(fingerprint.collapse_lib, "__file__", str(library / "__init__.py"))
    monkeypatch.setattr(fingerprint, "__file__", str(library / "replication" / "fingerprint.py"))

    def why_after(path: str, text: str) -> str:
        (library / path).write_text(text)
        fingerprint._library.cache_clear()
        return look_up(papers, folder).why

    try:
        why_after("metrics.py", "one")
        leave_result(task_of(papers), folder)
        assert why_after("replication/report.py", "other") == ""
        assert why_after("metrics.py", "other") == "changed: library"
        assert why_after("metrics.py", "one") == ""
        assert why_after("new.py", "") == "changed: library"
    finally:
        fingerprint._library.cache_clear()


def test_other_versions_device_and_data(papers: Papers, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_result(task_of(papers), folder)
    assert look_up(papers, folder, Settings("smoke", has_gpu=True)).why == "changed: device"
    assert look_up(papers, folder, Settings("smoke", device="cpu")).why == ""
    assert look_up(papers, folder, Settings("smoke", dataset="mnist")).why == "changed: parameters"
    assert look_up(papers, folder, Settings("smoke", values={"n_images": 11})).why == "changed: parameters"
    assert look_up(papers, folder, Settings("smoke", values={"n_images": 10, "other": 1})).why == ""
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint, "data", lambda name: None)
        assert look_up(papers, folder).why == "changed: data"
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint, "version", lambda package: "0.0")
        patched.setattr(fingerprint.platform, "python_version", lambda: "0.0")
        assert look_up(papers, folder).why == "changed: Python, torch"


def test_the_data_is_looked_at_only_if_nothing_else_has_changed(
    papers: Papers, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_result(task_of(papers), folder)
    monkeypatch.setattr(fingerprint, "data", lambda name: pytest.fail("looked at the data"))
    assert look_up(papers, folder, Settings("smoke", has_gpu=True)).why == "changed: device"


def test_a_damaged_or_incomplete_result_does_not_stand(papers: Papers, folder: Folder) -> None:
    path = leave_result(task_of(papers), folder)
    whole = path.read_text()
    path.write_text(whole[:-100])
    assert look_up(papers, folder).why == "its result is damaged"
    path.write_text(whole.replace("image/png", "image/gif"))
    assert look_up(papers, folder).why == "0 figures, but paper.toml promises at least 1"


def test_only_what_differs_from_the_constants_is_injected(papers: Papers) -> None:
    task = task_of(papers, Settings("paper"))
    assert task.injected == {}
    assert task.device == "cpu"
    smoke = {"profile": "smoke", "dataset": "digits", "n_images": 10, "lr": 1.0}
    assert task_of(papers).injected == smoke
    papers.add("one/only", smoke="n_images = 1000")
    assert task_of(papers).injected == {"profile": "smoke"}
    papers.add("one/only")
    chosen = task_of(papers, Settings("smoke", device="cuda", dataset="olivetti", has_gpu=True))
    assert chosen.injected == smoke | {"dataset": "olivetti", "device": "cuda"}
    assert chosen.device == "cuda"
    assert task_of(papers, Settings("paper", has_gpu=True)).device == "cuda"


def test_a_value_that_is_set_wins_over_the_profile(papers: Papers) -> None:
    values = {"n_images": 20, "lr": 2, "betas": [3], "unknown": 1}
    injected = task_of(papers, Settings("smoke", values=values)).injected
    assert injected == {"profile": "smoke", "dataset": "digits", "n_images": 20, "lr": 2.0, "betas": [3.0]}
    assert isinstance(injected["lr"], float)
    assert "n_images" not in task_of(papers, Settings("smoke", values={"n_images": 1000})).injected  # as the cell says


def test_a_notebook_that_asks_for_the_cpu_gets_it(papers: Papers) -> None:
    papers.add("one/only", smoke='device = "cpu"')
    assert task_of(papers, Settings("smoke", has_gpu=True)).device == "cpu"
    assert task_of(papers, Settings("paper", has_gpu=True)).device == "cuda"


# ---- deliverables ----------------------------------------------------------------------------------------------------


def shortcomings(task: Task, notebook: nbformat.NotebookNode) -> list[str]:
    return outcome.shortcomings(notebook, task.notebook, task.parameters)


def test_what_delivers_all_lacks_nothing(papers: Papers) -> None:
    task = task_of(papers)
    assert shortcomings(task, executed(task)) == []


def test_everything_that_is_missing_is_told(papers: Papers) -> None:
    task = task_of(papers)
    notebook = executed(task)
    *_, run, figure, ledger, verdicts = notebook.cells
    run.source = "value = 1"
    run.execution_count = None
    run.outputs = [new_output("error", ename="ValueError", evalue="no", traceback=[])]
    figure.outputs = ledger.outputs = verdicts.outputs = []
    assert shortcomings(task, notebook) == [
        "a cell shows an error: ValueError: no",
        "1 cells were not executed; first: value = 1",
        "a cell tagged nbval-check-output printed nothing",
        "0 figures, but paper.toml promises at least 1",
        "no ledger; call ledger.show()",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"claims": []}, "claims not recorded: A-1"),
        ({"profile": "paper"}, "the ledger is of one/only paper digits, the run of one/only smoke digits"),
        ({"dataset": "mnist"}, "the ledger is of one/only smoke mnist, the run of one/only smoke digits"),
        ({"notebook": "one/other"}, "the ledger is of one/other smoke digits, the run of one/only smoke digits"),
    ],
)
def test_a_ledger_of_another_run_or_with_gaps(papers: Papers, change: dict, told: str) -> None:
    task = task_of(papers)
    notebook = executed(task)
    notebook.cells[-2].outputs[0].data[MIME].update(change)
    assert shortcomings(task, notebook) == [told]


def test_a_claim_without_a_measurement_counts_only_where_it_is_judged(papers: Papers) -> None:
    task = task_of(papers)
    notebook = executed(task)
    claim = notebook.cells[-2].outputs[0].data[MIME]["claims"][0]
    del claim["measured"]
    assert shortcomings(task, notebook) == ["claims not recorded: A-1"]
    claim["verdict"] = "not judged"
    assert shortcomings(task, notebook) == []


def test_two_ledgers_or_one_of_another_form(papers: Papers) -> None:
    task = task_of(papers)
    notebook = executed(task)
    notebook.cells[-2].outputs *= 2
    assert "shows 2 ledgers" in shortcomings(task, notebook)[0]
    notebook = executed(task)
    notebook.cells[-2].outputs[0].data[MIME] = {"claims": "?"}
    assert "cannot be read" in shortcomings(task, notebook)[0]


# ---- the command line ------------------------------------------------------------------------------------------------


def main(papers: Papers, tmp_path: Path, *more: str) -> int:
    return cli.main(["--notebooks", str(papers.root), "--out", str(tmp_path / "out"), *more])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--profile", "small"], "choose from smoke, laptop, paper"),
        (["--device", "tpu"], "choose from auto, cpu, cuda"),
        (["--jobs", "0"], "'0' is not a number of 1 or more"),
        (["--jobs", "many"], "'many' is not a number of 1 or more"),
        (["--data", "cifar"], "no data set 'cifar'; there are digits, mnist, fashion_mnist, omniglot, olivetti"),
        (["nothing_like_it"], "no notebook matches 'nothing_like_it'; run_all.py --list shows them"),
        (["--publish"], "publish with --profile paper (or laptop)"),
        (["--set", "n_images"], "'n_images' is not of the form NAME=VALUE"),
        (["--set", "n images=1"], "is not of the form NAME=VALUE"),
        (["--set", "n_images=ten"], "'ten' is no number, string or list of these; a string needs quotes"),
        (["--set", "n_images=(1, 2)"], "is no number, string or list of these"),
        (["--set", "profile='paper'"], "profile has an option of its own; say --profile"),
        (["--set", "dataset='mnist'"], "say --data"),
        (["--set", "device='cpu'"], "say --device"),
        (["--set", "n_image=1"], "--set n_image: no selected notebook has this parameter; did you mean n_images?"),
        (["--set", "zzz=1"], "no selected notebook has this parameter; its cell of parameters names those it has"),
        (["--set", "n_images=1.5"], "n_images=1.5: is a float, the notebook has an int (one/only: n_images = 1000)"),
        (["--set", "n_images=None"], "n_images=None: is None, the notebook has an int"),
        (["--publish", "--profile", "paper", "--data", "digits"], "leave out --data, or --publish"),
    ],
)
def test_a_command_that_cannot_be_carried_out(
    papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    try:
        status = main(papers, tmp_path, *arguments)
    except SystemExit as ended:  # argparse's way
        status = int(str(ended.code))
    assert status == 2
    printed = capsys.readouterr().err
    # Older Pythons quote the choices.
    assert told in printed or told in re.sub(r"(?<=[ (])'(\w+)'(?=[,)])", r"\1", printed)
    assert not (tmp_path / "out").exists()


def test_cuda_without_a_gpu(
    papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collapse_lib.replication.processes.gpus", list)
    assert main(papers, tmp_path, "--device", "cuda") == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert main(papers, tmp_path, "--device", "cuda", "--dry-run") == 0
    told = capsys.readouterr()
    assert "no CUDA device here" in told.err
    (only,) = told.out.splitlines()[1:]
    assert only.split()[:6] == ["one/only", "run", "no", "result", "yet", "cuda"]
    assert "device='cuda'" in only
    assert not (tmp_path / "out").exists()


def test_values_are_set_where_they_are_a_parameter_of_what_is_selected(
    papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    papers.add("two/without", parameters="profile = 'paper'\ndataset = 'mnist'\ndevice = 'auto'", smoke="")
    papers.add("two/text", parameters="profile = 'paper'\ndataset = 'mnist'\ndevice = 'auto'\nlr = 'high'", smoke="")
    values = ["--set", "lr=2", "--set", "betas = [1, 2]"]
    assert main(papers, tmp_path, "only", "without", "--dry-run", *values) == 0
    only, without = capsys.readouterr().out.splitlines()[1:]
    assert only.endswith("lr=2.0, betas=[1.0, 2.0]")
    assert "lr" not in without
    assert main(papers, tmp_path, "--dry-run", *values) == 2
    assert (
        "lr=2: is an int, the notebook has a string (two/text: lr = 'high'); set another value"
        in capsys.readouterr().err
    )

    leave_result(task_of_key(papers, "one/only"), Folder(tmp_path / "out" / "smoke"))
    injected = {}
    monkeypatch.setattr(cli, "_execute", lambda due, *_: (injected.update(due[0].task.injected) or {}, False))
    assert main(papers, tmp_path, "text", "--set", "lr='low'") == 1
    assert injected == {"profile": "smoke", "lr": "low"}
    told = json.loads((tmp_path / "out" / "smoke" / "report.json").read_text())["notebooks"]
    assert told[0]["state"] == "cached"  # it has another `lr`, but was not selected


def test_a_dry_run_says_what_would_run_and_why_and_writes_nothing(
    papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    papers.add("one/other", smoke="betas = [1]")
    task = plan.task(catalogue.load(papers.root)[0], Settings("smoke"))
    leave_result(task, Folder(tmp_path / "out" / "smoke"))
    before = sorted((tmp_path / "out").rglob("*"))
    assert main(papers, tmp_path, "--dry-run") == 0
    only, other = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert only[:2] == ["one/only", "cached"]
    assert "about 8.5 s" in " ".join(only)
    assert other[:5] == ["one/other", "run", "no", "result", "yet"]
    assert other[-2:] == ["profile='smoke',", "betas=[1.0]"]
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_the_list_names_what_a_pattern_selects(
    papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    papers.add("two/other")
    assert main(papers, tmp_path, "--list", "two") == 0
    listed = capsys.readouterr().out
    assert "two/other" in listed
    assert "Test of other" in listed
    assert "one/only" not in listed
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written(
    papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path / "out" / "smoke")
    leave_result(task_of(papers), folder)

    def full(path: Path, content: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(notebook_file, "write_atomically", full)
    assert main(papers, tmp_path) == 1
    said = capsys.readouterr().out
    assert f"cannot write {folder.report_json}: No space left on device; what has run is kept" in said
    assert "one/only  cached" in said


def test_a_failing_claim_stays_a_failure_when_cached(
    papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Folder(tmp_path / "out" / "smoke")
    path = leave_result(task_of(papers), folder)
    assert main(papers, tmp_path) == 0
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-2].outputs[0].data[MIME]["claims"][0]["verdict"] = "FAILS"
    nbformat.write(notebook, path)
    assert main(papers, tmp_path) == 1
    said = capsys.readouterr().out
    assert "one/only A-1 FAILS: t\n  measured 10, expected ≥ 1\n" in said
    (told,) = json.loads(folder.report_json.read_text())["notebooks"]
    assert told["state"] == "cached"
