"""The machine's side of a run: cores, GPUs, and an end for every process that a notebook started."""

import contextlib
import ctypes
import os
import time
from collections.abc import Mapping, Sequence

import psutil  # type: ignore[import-untyped]

MARK = "COLLAPSE_RUN"
"""Environment variable that a worker and all that it starts inherit.

Jupyter puts a kernel into a session of its own, and the kernel of a worker that was killed has lost its parent: neither
the process group nor the family tree finds it. What a process inherited at its start does.
"""

GPU_SHARE = 16 * 2**30
"""Bytes of GPU memory for one notebook (a guess, not measured): stacked sweeps of small nets take a few GiB."""

_THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")


def end_marked(mark: str) -> None:
    """Kills every process that carries `mark`, except this one."""
    for _ in range(
        100
    ):  # again, since they may have forked meanwhile; not for ever, since a process can be beyond reach
        marked = [process for process in psutil.process_iter() if _carries(process, mark)]
        if not marked:
            return
        for process in marked:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)  # not psutil's wait, which would take a child's exit status from whoever waits for it


def _carries(process: psutil.Process, mark: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return process.pid != os.getpid() and process.environ().get(MARK) == mark
    return False


def cores() -> int:
    """The cores that this process may use; a container's quota counts."""
    from joblib import cpu_count  # type: ignore[import-untyped]

    return int(cpu_count())


def thread_limits(threads: int) -> dict[str, str]:
    """Environment that holds numerical libraries to `threads`: two notebooks that both take all cores crawl."""
    # Waiting threads sleep instead of spinning. Alone that costs nothing that could be measured; beside two other busy
    # processes on two cores it was more than twice as fast.
    return {f"{library}_NUM_THREADS": str(threads) for library in _THREADS} | {"OMP_WAIT_POLICY": "PASSIVE"}


def gpus() -> list[str]:
    """Places on the CUDA devices that torch can use, as values of CUDA_VISIBLE_DEVICES: one a notebook (`places`).

    torch takes seconds to import, so it is only asked where there is a driver to talk to.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = [torch.cuda.get_device_properties(number).total_memory for number in range(count)]
    return places(visible_devices(count, os.environ), memory)


def visible_devices(count: int, environment: Mapping[str, str]) -> list[str]:
    """Names of `count` devices: those that CUDA_VISIBLE_DEVICES already narrows the choice to, else their numbers."""
    named = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def places(devices: Sequence[str], memory: Sequence[int]) -> list[str]:
    """Each device as often as `GPU_SHARE` goes into its bytes of memory, once at least; by turns, so that all fill."""
    room = [max(1, size // GPU_SHARE) for size in memory]
    return [
        name for turn in range(max(room, default=0)) for name, most in zip(devices, room, strict=True) if turn < most
    ]
