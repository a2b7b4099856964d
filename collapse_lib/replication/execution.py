"""Executes notebooks, one worker process each, and turns what comes out into results or failures.

The parent alone decides what a result is: a worker writes below `.running/`, and only a notebook that delivers all that
its paper.toml promises is renamed into its place. A worker that raises, hangs or is killed leaves its log and, beside
it, what it had executed; the others go on.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from collapse_lib.ledger import ClaimError, read_ledger
from collapse_lib.progress import PLAIN
from collapse_lib.replication import fingerprint, notebook_file, processes
from collapse_lib.replication.folder import Folder
from collapse_lib.replication.notebook_file import NotebookFileError
from collapse_lib.replication.outcome import Failure, Outcome, State, shortcomings
from collapse_lib.replication.plan import METADATA, Planned, Task
from collapse_lib.replication.worker import Job


class Watcher(Protocol):
    """What is told about a run while it goes on."""

    def started(self, planned: Planned) -> None: ...

    def cell(self, key: str, number: int, total: int) -> None: ...

    def finished(self, outcome: Outcome) -> None: ...


class Execution:
    """Runs planned notebooks, `jobs` at a time with `threads` threads each, those on a GPU one a place of `gpus`.

    `outcomes` grows meanwhile, and stays what it is when the run is cancelled.
    """

    def __init__(self, folder: Folder, watcher: Watcher, *, jobs: int, threads: int, gpus: Sequence[str] = ()) -> None:
        self.outcomes: list[Outcome] = []
        self._folder, self._watcher = folder, watcher
        self._threads = processes.thread_limits(threads)
        self._slots = asyncio.Semaphore(jobs)
        self._gpus: asyncio.Queue[str] = asyncio.Queue()
        for gpu in gpus:
            self._gpus.put_nowait(gpu)

    async def run(self, plan: Iterable[Planned]) -> None:
        # First those of which nothing is known, then the longest: they are what would be waited for at the end.
        ordered = sorted(plan, key=lambda planned: -(planned.estimate or float("inf")))
        async with asyncio.TaskGroup() as group:
            for planned in ordered:
                group.create_task(self._run(planned))

    async def _run(self, planned: Planned) -> None:
        # First the GPU, then the slot: who waits for a GPU must not keep others from the cores.
        async with self._gpu(planned.task) as gpu, self._slots:
            self._watcher.started(planned)
            began = time.monotonic()
            failure: Failure | None
            try:
                failure = await self._execute(planned.task, self._threads | gpu)
                outcome = await self._conclude(planned.task, failure, round(time.monotonic() - began, 2))
            except OSError as error:
                failure = Failure(State.FAILED, f"{error.filename or self._folder.root}: {error.strerror}")
                outcome = Outcome(planned.task.notebook, State.FAILED, failure=failure)
        self.outcomes.append(outcome)
        self._watcher.finished(outcome)

    @contextlib.asynccontextmanager
    async def _gpu(self, task: Task) -> AsyncIterator[dict[str, str]]:
        if task.device != "cuda":
            yield {}
            return
        gpu = await self._gpus.get()
        try:
            yield {"CUDA_VISIBLE_DEVICES": gpu}
        finally:
            self._gpus.put_nowait(gpu)

    async def _execute(self, task: Task, environment: Mapping[str, str]) -> Failure | None:
        """Runs a worker to its end, natural or not; afterwards nothing that it started is left."""
        running, log = self._folder.running(task.key), self._folder.log(task.key)
        for path in (running, log):
            path.parent.mkdir(parents=True, exist_ok=True)
        job = Job(str(task.notebook.path), str(running), str(task.notebook.path.parent), task.injected)
        mark = uuid.uuid4().hex
        trace = _Trace()
        with log.open("wb") as log_file:
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "collapse_lib.replication.worker"),
                stdin=PIPE,
                stdout=PIPE,
                stderr=log_file,
                # A user's own kernel named python3 must not stand in for the one of this environment.
                env=os.environ | environment | {processes.MARK: mark, "JUPYTER_PREFER_ENV_PATH": "1", PLAIN: "1"},
                start_new_session=True,
                limit=2**20,
            )
            try:
                async with asyncio.timeout(task.limit):
                    await self._follow(worker, job, task.key, trace)
            except TimeoutError:
                return trace.failure(
                    State.TIMED_OUT,
                    f"stopped after {task.limit} s, its timeout_s.{task.profile} in paper.toml; "
                    "raise it there if the machine is slow or busy",
                )
            finally:
                processes.end_marked(mark)
                await worker.wait()
        if trace.done and worker.returncode == 0:
            return None
        return trace.failure(State.FAILED if trace.error else State.KILLED, trace.error or _ending(worker))

    async def _follow(self, worker: Process, job: Job, key: str, trace: "_Trace") -> None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        with contextlib.suppress(ConnectionError):  # a worker that is gone already says so by its status
            worker.stdin.write(f"{job.to_json()}\n".encode())
            await worker.stdin.drain()
        async for line in worker.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # the last line of a worker that was killed
                trace.note(json.loads(line))
            self._watcher.cell(key, trace.number, trace.cells)
        await worker.wait()

    async def _conclude(self, task: Task, failure: Failure | None, seconds: float) -> Outcome:
        """Renames what was executed into its place if it is a result, and beside its log if it is not."""
        running, result, failed = (
            where(task.key) for where in (self._folder.running, self._folder.result, self._folder.failed)
        )
        executed = {}
        if failure is None:
            executed = notebook_file.read(running)
            if missing := shortcomings(executed, task.notebook, task.parameters):
                failure = Failure(State.FAILED, "; ".join(missing))
        if failure is not None:
            kept = ledger = None
            with contextlib.suppress(OSError, NotebookFileError, ClaimError):
                executed = notebook_file.read(running)  # killed while it was written, it is no notebook
                kept = running.replace(failed)
                ledger = read_ledger(executed)
            failure = replace(failure, log=self._folder.log(task.key), notebook=kept, ledger=ledger)
            return Outcome(task.notebook, failure.state, seconds, failure=failure)

        data = await asyncio.to_thread(fingerprint.data, task.parameters)
        executed["metadata"][METADATA] = {
            "fingerprint": {**task.fingerprint, "data": data},
            "profile": task.profile,
            "parameters": task.parameters,
            "seconds": seconds,
            "device": task.device,
        }
        result.parent.mkdir(parents=True, exist_ok=True)
        running.write_text(notebook_file.dumps(executed), encoding="utf-8")
        running.replace(result)
        failed.unlink(missing_ok=True)
        ledger = read_ledger(executed)
        return Outcome(
            task.notebook, State.RAN, seconds, ledger, result=result, device=task.device, parameters=task.parameters
        )


@dataclass
class _Trace:
    """How far a worker has come, as far as it has told."""

    cells: int = 0
    number: int = 0
    code: str = ""
    done: bool = False
    error: str = ""
    traceback: tuple[str, ...] = ()

    def note(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"event": "started", "cells": cells}:
                self.cells = cells
            case {"event": "cell", "number": number, "code": code}:
                self.number, self.code = number, code
            case {"event": "failed", "error": error, "traceback": traceback}:
                self.error, self.traceback = error, tuple(traceback)
            case {"event": "done"}:
                self.done = True

    def failure(self, state: State, error: str) -> Failure:
        cell = f"cell {self.number} of {self.cells}: {self.code}" if self.number else None
        return Failure(state, error, cell, self.traceback)


def _ending(worker: Process) -> str:
    status = worker.returncode or 0
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name} (out of memory?)"
    return f"its process ended with status {status} before the notebook did"
