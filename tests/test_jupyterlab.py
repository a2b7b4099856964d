"""A real JupyterLab in a real browser: a published notebook opens and runs from top to bottom."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import browser
import nbformat
import pytest
from playwright.sync_api import expect

from collapse_lib.replication import catalogue, notebook_file, prepare
from collapse_lib.replication.notebook_file import CHECKED

ROOT = Path(__file__).parents[1]
FASTEST = "linear_vae/stationary_points"
# Slow machines are no failure: what takes 20 s on an idle core may take ten times that on a busy one.
PATIENCE = 300  # s

SERVER = (
    "--no-browser",
    "--allow-root",
    "--ServerApp.port_retries=0",
    "--LabApp.news_url=",
    "--LabApp.extension_manager=readonly",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
)
NO_NEWS = {"fetchNews": "false", "checkForUpdates": False}


@contextmanager
def jupyterlab(folder: Path, scratch: Path) -> Iterator[str]:
    """The address of a JupyterLab that shows `folder`, with its token; nothing of the user's own set-up is used."""
    settings = scratch / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(NO_NEWS))
    own = {f"JUPYTER_{name}_DIR": str(scratch / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{name}_DIR": str(scratch / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    own |= {"IPYTHONDIR": str(scratch / "ipython"), "OMP_NUM_THREADS": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, log = secrets.token_hex(), scratch / "server.log"
    options = ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *SERVER, *options, f"--ServerApp.root_dir={folder}"],
            env={**os.environ, **own},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for_server(f"http://127.0.0.1:{port}/api/status?token={token}", server, log)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}"
    finally:
        server.terminate()  # it ends its kernels
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for_server(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(10 * PATIENCE):
        assert server.poll() is None, log.read_text()
        try:
            with urlopen(address, timeout=10):
                return
        except (URLError, TimeoutError):
            time.sleep(0.1)
    pytest.fail(f"no answer within {PATIENCE} s\n{log.read_text()}")


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """The published notebook with the parameters of `smoke` and without its outputs, its paper.toml beside it."""
    (published,) = catalogue.select(catalogue.load(ROOT / "notebooks"), [FASTEST])
    (path,) = prepare.prepare([published], "smoke", tmp_path / "notebooks")
    content = nbformat.read(path, as_version=4)
    for cell in code_cells(content):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(content, path)
    return path


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_a_published_notebook_runs_from_top_to_bottom_in_jupyterlab(notebook: Path, tmp_path: Path) -> None:
    published = nbformat.read(ROOT / "notebooks" / f"{FASTEST}.ipynb", as_version=4)
    (checked,) = notebook_file.tagged(published, CHECKED)
    n_cells = len(code_cells(nbformat.read(notebook, as_version=4)))
    browser.find()  # before the server starts for nothing
    expect.set_options(timeout=1000 * PATIENCE)

    with jupyterlab(notebook.parents[1], tmp_path / "scratch") as address, browser.opened() as opened:
        page = opened.page
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address.format(f"{FASTEST}.ipynb"))
        # Before the kernel answers, cells can be run without effect.
        expect(page.locator("#jp-main-statusbar")).to_contain_text("Python 3 (ipykernel) | Idle")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

        prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
        failed = page.locator("[data-mime-type='application/vnd.jupyter.error']")
        expect(prompts.last.filter(has_text=re.compile(r"\[\d+\]")).or_(failed).first).to_be_attached()
        # What lies out of sight is in the page, but not laid out: its content is asked for, not its looks.
        assert failed.all_text_contents() == []
        assert prompts.all_text_contents() == [f"[{i}]:" for i in range(1, n_cells + 1)]
        verdicts = page.locator(".jp-CodeCell", has_text="ledger.verdicts()").locator(".jp-OutputArea-output")
        verdicts.scroll_into_view_if_needed()
        if screenshot := os.environ.get("SCREENSHOT"):
            page.screenshot(path=screenshot)
        assert verdicts.inner_text().strip() == checked.outputs[0].text.strip()
