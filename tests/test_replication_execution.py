"""Execution with real kernels: what runs side by side, and what becomes of notebooks that raise, hang or are killed."""

import asyncio
import contextlib
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from replication_notebooks import FIGURE, Papers

import collapse_lib
from collapse_lib.replication import catalogue, cli, notebook_file, plan, processes
from collapse_lib.replication.execution import Execution
from collapse_lib.replication.folder import Folder, FolderError
from collapse_lib.replication.outcome import Failure, Outcome, State
from collapse_lib.replication.plan import Planned, Settings, Task

RUN_ALL = Path(collapse_lib.__file__).parents[1] / "run_all.py"


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path / "notebooks")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def main(papers: Papers, out: Path, *more: str) -> int:
    return cli.main(["--notebooks", str(papers.root), "--out", str(out), "--device", "cpu", *more])


def states(out: Path, profile: str = "smoke") -> dict[str, str]:
    told = json.loads((out / profile / "report.json").read_text())
    return {each["notebook"]: each["state"] for each in told["notebooks"]}


def failures(out: Path) -> dict[str, dict[str, str]]:
    told = json.loads((out / "smoke" / "report.json").read_text())
    return {each["notebook"]: each["failure"] for each in told["notebooks"] if each["failure"]}


def printed(path: Path) -> str:
    outputs = notebook_file.outputs(notebook_file.read(path))
    return "".join(notebook_file.text(output["text"]) for output in outputs if output["output_type"] == "stream")


class Silent:
    """A watcher that says nothing."""

    def started(self, planned: Planned) -> None: ...
    def cell(self, key: str, number: int, total: int) -> None: ...
    def finished(self, outcome: Outcome) -> None: ...


def test_those_that_raise_hang_or_are_killed_fail_alone_and_the_rerun_resumes(
    papers: Papers, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mended = tmp_path / "mended"
    once = f"import os, pathlib, time\nif not pathlib.Path({str(mended)!r}).exists():\n    "
    papers.add("one/good", "print('good')")
    papers.add("one/hangs", once + "time.sleep(600)", timeout=9)
    papers.add("one/kernel_killed", once + "os.kill(os.getpid(), 9)")
    papers.add("one/no_figure", figure=f"import pathlib\nif pathlib.Path({str(mended)!r}).exists():\n    {FIGURE}")
    papers.add("one/raises", once + "raise ValueError('no such thing')")
    papers.add("one/worker_killed", once + "os.kill(os.getppid(), 9); time.sleep(600)")

    assert main(papers, out, "--jobs", "6") == 1
    assert states(out) == {
        "one/good": "ran",
        "one/hangs": "timed out",
        "one/kernel_killed": "failed",
        "one/no_figure": "failed",
        "one/raises": "failed",
        "one/worker_killed": "killed",
    }
    told = failures(out)
    assert told["one/no_figure"]["error"] == "0 figures, but paper.toml promises at least 1"
    assert {each["cell"] for key, each in told.items() if key != "one/no_figure"} == {
        "cell 3 of 6: import os, pathlib, time"
    }
    assert told["one/hangs"]["error"] == (
        "stopped after 9 s, its timeout_s.smoke in paper.toml; raise it there if the machine is slow or busy"
    )
    assert "the kernel died" in told["one/kernel_killed"]["error"]
    assert told["one/raises"]["error"] == "ValueError: no such thing"
    assert told["one/raises"]["traceback"][-1] == "ValueError: no such thing"
    assert "SIGKILL" in told["one/worker_killed"]["error"]
    said = capsys.readouterr().out
    for key, failure in told.items():
        log = out / "smoke" / failure["log"]
        assert log == out / "smoke" / "logs" / f"{key}.log"
        assert log.exists()
        assert failure["error"] in said
        assert str(log) in said
    # What had been executed lies beside the log, and nothing else is left.
    assert "ValueError" in (out / "smoke" / "logs" / "one" / "raises.failed.ipynb").read_text()
    assert [path.name for path in (out / "smoke").rglob("*.ipynb") if "logs" not in path.parts] == ["good.ipynb"]
    assert not (out / "smoke" / ".running").exists()

    mended.touch()
    assert main(papers, out, "--jobs", "6") == 0
    assert states(out) == {key: "cached" if key == "one/good" else "ran" for key in states(out)}
    assert not list((out / "smoke" / "logs").rglob("*.failed.ipynb"))


def test_two_jobs_run_side_by_side_each_with_its_share_of_the_cores(
    papers: Papers, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each waits until the other has begun, so that one after the other they would never end.
    for own, other in (("a", "b"), ("b", "a")):
        papers.add(
            f"one/{own}",
            f"""
            import os, pathlib, time
            pathlib.Path({str(tmp_path)!r}, {own!r}).touch()
            while not pathlib.Path({str(tmp_path)!r}, {other!r}).exists():
                time.sleep(0.05)
            print(os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"], os.getcwd())
            """,
        )
    monkeypatch.setattr(processes, "cores", lambda: 7)
    assert main(papers, out, "--jobs", "2") == 0
    for name in "ab":
        assert printed(out / "smoke" / "one" / f"{name}.ipynb").startswith(f"3 3 {papers.root / 'one'}")


class Counting(Execution):
    """Executes nothing, and notes in which order, how many at a time, and what on which GPU."""

    def __init__(self, folder: Folder, **limits: Any) -> None:
        super().__init__(folder, Silent(), threads=1, **limits)
        self.began: list[str] = []
        self.running: list[str] = []
        self.most = 0

    async def _execute(self, task: Task, environment: Mapping[str, str]) -> None:
        gpu = environment.get("CUDA_VISIBLE_DEVICES", "")
        assert not gpu or gpu not in self.running, "two notebooks on one GPU"
        assert bool(gpu) == (task.device == "cuda")
        self.began.append(task.notebook.path.stem)
        self.running.append(gpu)
        self.most = max(self.most, len(self.running))
        await asyncio.sleep(0.01)
        self.running.remove(gpu)

    async def _conclude(self, task: Task, failure: Failure | None, seconds: float) -> Outcome:
        return Outcome(task.notebook, State.RAN, seconds)


@pytest.mark.parametrize(
    ("device", "jobs", "gpus", "most"),
    [
        ("cpu", 1, (), 1),
        ("cpu", 3, (), 3),
        ("cuda", 3, ("5",), 1),
        ("cuda", 3, ("5", "7"), 2),
        ("cuda", 1, ("5", "7"), 1),
    ],
)
def test_as_many_at_a_time_as_there_are_jobs_and_one_on_a_gpu(
    papers: Papers, out: Path, device: str, jobs: int, gpus: tuple[str, ...], most: int
) -> None:
    for name in "abcd":
        papers.add(f"one/{name}")
    tasks = [plan.task(each, Settings("smoke", has_gpu=bool(gpus))) for each in catalogue.load(papers.root)]
    assert {task.device for task in tasks} == {device}
    planned = [Planned(task, Outcome(task.notebook, State.NOT_RUN), "no result yet", None) for task in tasks]
    execution = Counting(Folder(out), jobs=jobs, gpus=gpus)
    asyncio.run(execution.run(planned))
    assert execution.most == most
    assert [outcome.state for outcome in execution.outcomes] == [State.RAN] * 4


def test_who_waits_for_a_gpu_keeps_nobody_from_the_cores(papers: Papers, out: Path) -> None:
    for name, device in (("a", "auto"), ("b", "auto"), ("c", "cpu"), ("d", "cpu")):
        papers.add(f"one/{name}", smoke=f'device = "{device}"')
    tasks = [plan.task(each, Settings("smoke", has_gpu=True)) for each in catalogue.load(papers.root)]
    planned = [Planned(task, Outcome(task.notebook, State.NOT_RUN), "no result yet", None) for task in tasks]
    execution = Counting(Folder(out), jobs=2, gpus=("5",))
    asyncio.run(execution.run(planned))
    assert execution.most == 2
    assert execution.began[:2] == ["a", "c"]


def test_the_unknown_and_the_longest_go_first(papers: Papers, out: Path) -> None:
    planned = []
    for name, estimate in (("a", 1.0), ("b", None), ("c", 9.0)):
        papers.add(f"one/{name}")
        task = plan.task(catalogue.load(papers.root)[-1], Settings("smoke"))
        planned.append(Planned(task, Outcome(task.notebook, State.NOT_RUN), "no result yet", estimate))
    execution = Counting(Folder(out), jobs=1)
    asyncio.run(execution.run(planned))
    assert execution.began == ["b", "c", "a"]


def test_an_old_cell_of_injected_parameters_is_taken_out_first(papers: Papers, out: Path) -> None:
    path = papers.add("one/old", "print('images', n_images)")
    notebook = nbformat.read(path, as_version=4)
    old = nbformat.v4.new_code_cell("n_images = 77", id="old", metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(2, old)
    nbformat.write(notebook, path)
    # On the device of the notebook's choice, nothing is left to inject, and papermill would leave the old cell alone.
    assert cli.main(["--notebooks", str(papers.root), "--out", str(out), "--profile", "paper"]) == 0
    result = out / "paper" / "one" / "old.ipynb"
    assert "images 1000" in printed(result)
    assert notebook_file.tagged(notebook_file.read(result), notebook_file.INJECTED) == []


class Background:
    """A run_all.py in a process of its own that has come to a notebook that hangs, the second of two."""

    def __init__(self, papers: Papers, out: Path, pid_file: Path, pattern: str) -> None:
        papers.add("one/a_good")
        papers.add(
            "one/b_hangs",
            f"""
            import os, pathlib, time
            pathlib.Path({str(pid_file)!r}).with_suffix(".tmp").write_text(str(os.getpid()))
            pathlib.Path({str(pid_file)!r}).with_suffix(".tmp").rename({str(pid_file)!r})
            time.sleep(600)
            """,
            timeout=600,
        )
        self.arguments = [pattern, "--notebooks", str(papers.root), "--out", str(out), "--jobs", "1", "--device", "cpu"]
        self.process = subprocess.Popen(
            [sys.executable, str(RUN_ALL), *self.arguments, "--force"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while not pid_file.exists():
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.05)
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        assert int(pid_file.read_text()) in [child.pid for child in self.children]

    def wait_for_children(self) -> None:
        _, alive = psutil.wait_procs(self.children, timeout=20)
        assert not alive


@pytest.fixture
def background(request: pytest.FixtureRequest, papers: Papers, out: Path, tmp_path: Path) -> Iterator[Background]:
    running = Background(papers, out, tmp_path / "pid", request.param)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()
        for child in running.children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@pytest.mark.parametrize("background", ["*"], indirect=True)
def test_ctrl_c_ends_what_runs_keeps_what_has_finished_and_says_how_to_go_on(
    background: Background, papers: Papers, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A second run in the same folder gives way at once, and the first is none the worse for it.
    assert main(papers, out) == 2
    assert "another run is writing" in capsys.readouterr().err

    background.process.send_signal(signal.SIGINT)
    said, _ = background.process.communicate(timeout=60)
    assert background.process.returncode == 130
    background.wait_for_children()
    assert states(out) == {"one/a_good": "ran", "one/b_hangs": "interrupted"}
    assert f"to go on: python {RUN_ALL} {shlex.join(background.arguments)}\n" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in (out / "smoke").rglob("*.ipynb")) == ["a_good.ipynb"]
    assert main(papers, out, "a_good") == 0
    assert states(out) == {"one/a_good": "cached", "one/b_hangs": "not run"}


@pytest.mark.parametrize("background", ["b_hangs"], indirect=True)
def test_if_run_all_itself_is_killed_its_notebooks_end_too_and_the_rerun_resumes(
    background: Background, papers: Papers, out: Path
) -> None:
    background.process.kill()
    background.process.wait()
    background.wait_for_children()
    assert (out / "smoke" / ".running" / "one" / "b_hangs.ipynb").exists()
    assert main(papers, out, "a_good") == 0
    assert states(out) == {"one/a_good": "ran", "one/b_hangs": "not run"}
    assert not (out / "smoke" / ".running").exists()


def run_limited(limit: str, papers: Papers, out: Path) -> subprocess.CompletedProcess[str]:
    """run_all.py in a process that first executes the statement `limit`."""
    arguments = [str(RUN_ALL), "--notebooks", str(papers.root), "--out", str(out), "--device", "cpu"]
    code = f"import os, sys, ctypes, resource; {limit}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_read_only_output_folder(papers: Papers, out: Path) -> None:
    papers.add("one/good")
    (out / "smoke").mkdir(parents=True)
    (out / "smoke").chmod(0o555)
    # root writes where it likes: a bounding set without CAP_DAC_OVERRIDE (1) makes it obey, PR_CAPBSET_DROP being 24
    obey = "os.geteuid() or ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)"
    ended = run_limited(obey, papers, out)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"run_all.py: cannot write {out / 'smoke'}: Permission denied; choose another folder with --out\n"
    )
    assert list((out / "smoke").iterdir()) == []


def test_files_that_cannot_grow(papers: Papers, out: Path) -> None:
    """A limit on the size of files stands in for a full disk: every write beyond it fails, in all processes."""
    papers.add("one/good", "print('x' * 50_000)")
    ended = run_limited("resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))", papers, out)
    assert ended.returncode == 1
    assert "one/good failed: [Errno 27] File too large" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
    # Nothing is cut off: the report, small enough, is whole, and there is no notebook.
    assert set(failures(out)) == {"one/good"}
    assert (out / "smoke" / "report.html").read_text().endswith("</html>\n")
    kept = {path.relative_to(out / "smoke").as_posix() for path in (out / "smoke").rglob("*") if path.is_file()}
    assert kept == {".lock", "logs/one/good.log", "report.json", "report.html"}


def test_a_disk_that_is_full_when_the_result_is_written(
    papers: Papers, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    papers.add("one/good")

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        assert main(papers, out) == 1
    said = capsys.readouterr().out
    assert re.search(r"one/good failed: .*/one/good\.ipynb: No space left on device\n", said)
    assert re.search(r"cannot write .*: No space left on device; what has run is kept\n", said)
    assert [path.name for path in (out / "smoke").rglob("*") if path.is_file()] == [".lock", "good.log"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a file that is always full, on this system")
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    (tmp_path / ".report.json.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        notebook_file.write_atomically(path, "new" * 10_000)
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]
    assert path.read_text() == "old"
    notebook_file.write_atomically(path, "new")
    assert path.read_text() == "new"


def test_a_folder_is_free_again_after_a_run(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with folder.occupied():
        with pytest.raises(FolderError, match="another run is writing"), Folder(tmp_path).occupied():
            pass
        assert (tmp_path / ".running").exists()
    with folder.occupied():
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_what_a_notebook_started_ends_with_it_wherever_it_went() -> None:
    """Jupyter gives a kernel a session of its own, and one whose worker was killed has no parent to be found by."""
    leave = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1, "
    leave += "stdout=subprocess.DEVNULL, start_new_session=True).pid, flush=True); input()"

    def start(mark: str) -> tuple[subprocess.Popen[str], psutil.Process]:
        environment = os.environ | {processes.MARK: mark}
        parent = subprocess.Popen(
            [sys.executable, "-c", leave], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        return parent, psutil.Process(int(parent.stdout.readline()))

    parent, child = start("one")
    other_parent, other_child = start("two")
    try:
        parent.kill()
        parent.communicate()
        assert child.is_running()
        processes.end_marked("one")
        psutil.wait_procs([child], timeout=20)
        assert not child.is_running()
        assert other_child.is_running()
        assert other_parent.poll() is None
    finally:
        processes.end_marked("one")
        processes.end_marked("two")
        other_parent.communicate()


@pytest.mark.parametrize(
    ("visible", "devices"),
    [({}, ["0", "1"]), ({"CUDA_VISIBLE_DEVICES": "3, 5"}, ["3", "5"]), ({"CUDA_VISIBLE_DEVICES": ""}, ["0", "1"])],
)
def test_devices_keep_to_those_that_the_user_left_visible(visible: dict[str, str], devices: list[str]) -> None:
    assert processes.visible_devices(2, visible) == devices


@pytest.mark.parametrize(
    ("gib", "places"),
    [
        ([], []),
        ([8], ["0"]),  # a small GPU still takes one notebook
        ([139], ["0"] * 8),
        ([40, 80], ["0", "1", "0", "1", "1", "1", "1"]),
    ],
)
def test_notebooks_share_a_gpu_as_far_as_its_memory_goes(gib: list[int], places: list[str]) -> None:
    assert processes.places([str(number) for number in range(len(gib))], [size * 2**30 for size in gib]) == places
