"""Provenance: what a run says about itself is true, complete and fit to be published."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter

import collapse_lib
from collapse_lib import data, provenance
from collapse_lib.checkout import Commit, library_commit
from collapse_lib.provenance import DeviceError, cpu_name, pick_device

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def cuda(monkeypatch):
    """Lets torch say that there is a GPU or that there is none."""

    def cuda(there):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")

    return cuda


@pytest.mark.parametrize(
    ("name", "there", "device"),
    [
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_pick_device(cuda, name, there, device):
    cuda(there)
    assert pick_device(name) == torch.device(device)


def test_a_device_that_is_not_there(cuda):
    cuda(False)
    with pytest.raises(
        DeviceError, match=r"'cuda' was asked for, but torch .* finds no usable GPU; use device 'cpu' or"
    ):
        pick_device("cuda")
    with pytest.raises(ValueError, match="no device 'gpu'; use 'auto', 'cpu' or 'cuda'"):
        pick_device("gpu")


# --- the state of the source


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one committed file, and a function that runs git in it, undisturbed by the user's settings."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "checkout"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "code.py").write_text("x = 1\n")

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    return folder, git


@needs_git
def test_the_commit_and_what_differs_from_it(repository):
    folder, git = repository
    sha = git("rev-parse", "HEAD")
    assert library_commit(folder) == Commit(sha, dirty=False)
    (folder / "package" / "code.py").write_text("x = 2\n")
    assert library_commit(folder) == Commit(sha, dirty=True)
    git("checkout", "--quiet", ".")
    (folder / "new.py").touch()
    assert library_commit(folder) == Commit(sha, dirty=True)
    (folder / ".gitignore").write_text("*.py\n.gitignore\n")
    assert library_commit(folder) == Commit(sha, dirty=False)


@needs_git
def test_a_library_inside_somebody_elses_checkout_has_no_commit(repository):
    folder, _ = repository
    assert library_commit(folder / "package") is None


@needs_git
def test_a_git_hook_does_not_lead_elsewhere(repository, monkeypatch):
    folder, git = repository
    sha = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(folder / "nowhere"))
    assert library_commit(folder) == Commit(sha, dirty=False)


def test_no_commit_where_there_is_no_checkout_or_no_git(tmp_path, monkeypatch):
    # Without a repository above, whatever the temporary folder lies in.
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    assert library_commit(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert library_commit() is None


# --- the report


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", n=7)


def test_the_report_is_true(digits, monkeypatch):
    ticks = iter([100.0, 112.5])
    monkeypatch.setattr(provenance.time, "perf_counter", lambda: next(ticks))
    states = iter([Commit("a" * 40, dirty=True)])
    monkeypatch.setattr(provenance, "library_commit", lambda: next(states))
    seen = provenance.start().read(data=[digits], device=torch.device("cpu"), seeds=np.arange(3))
    assert seen.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert seen.versions["torch"] == torch.__version__
    assert seen.versions["numpy"] == np.__version__
    assert seen.versions["collapse_lib"] == collapse_lib.__version__
    assert re.match(r"\d+\.\d+", seen.versions["torchvision"])
    assert (seen.commit, seen.dirty, seen.wall_s, seen.seeds) == ("a" * 40, True, 12.5, (0, 1, 2))
    assert (seen.device, seen.cpu_threads) == ("cpu", torch.get_num_threads())
    (used,) = seen.data
    assert (used.name, used.split, used.n, used.checksum) == ("digits", "train", 7, digits.checksum)
    assert dict(seen.rows())["commit"] == "aaaaaaaaaaaa, with uncommitted changes"


def test_all_forms_say_the_same_and_nothing_of_the_machine(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = provenance.start().read(data=[digits], seeds=[5, 17])
    shown, _ = DisplayFormatter().format(seen)
    assert set(shown) == {"text/html", "text/plain", provenance.MIME}
    stored = json.loads(json.dumps(shown[provenance.MIME]))
    assert stored["seeds"] == [5, 17]
    assert stored["data"][0]["checksum"] == digits.checksum
    for text in (shown["text/html"], shown["text/plain"]):
        for words in ("5, 17", digits.checksum, "first 7 images", torch.__version__, "wall time"):
            assert words in text
    everything = json.dumps(shown)
    for folder in (tmp_path, Path(provenance.__file__).parent, Path(sys.prefix)):
        assert str(folder) not in everything
    assert platform.node() not in re.split(r"[\s\"\\]+", everything)


def test_the_report_is_displayed(capsys):
    provenance.start().report(device="cpu")
    printed = capsys.readouterr().out
    assert "device:" in printed
    assert re.search(r"seeds: +none\n", printed)


def test_the_device_is_named(cuda):
    cuda(True)
    assert provenance.start().read(device="auto").device_name == "GPU of cuda"
    assert provenance.start().read(device=torch.device("cuda", 1)).device_name == "GPU of cuda:1"
    cuda(False)
    assert provenance.start().read(device="auto").device_name == cpu_name()


def test_the_processor_is_named(tmp_path):
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor: 0\nmodel name\t: A Processor @ 2 GHz\nprocessor: 1\nmodel name\t: another\n")
    assert cpu_name(listing) == "A Processor @ 2 GHz"
    listing.write_text("processor: 0\n")  # as on ARM
    for none in (listing, tmp_path / "not there"):
        assert cpu_name(none) in (platform.processor(), platform.machine())


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60.4, "1 min 00 s"), (3599.7, "1 h 00 min 00 s"), (7384, "2 h 03 min 04 s")],
)
def test_wall_time_is_readable(monkeypatch, seconds, shown):
    ticks = iter([1000.0, 1000.0 + seconds])
    monkeypatch.setattr(provenance.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(provenance, "library_commit", lambda: None)
    rows = dict(provenance.start().read().rows())
    assert rows["wall time"] == shown
    assert rows["commit"].startswith("unknown")
