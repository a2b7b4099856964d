"""Two pieces of work measured side by side: alternating, several repeats, ratios of times taken in the same run.

What one step holds and computes, which no other process disturbs: `peak_memory`, `flops`.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Row:
    """One line of the table: `peer` and `ours` are in `unit`, one a repeat."""

    work: str
    against: str
    peer: list[float]
    ours: list[float]
    remark: str
    unit: str = "s"

    @property
    def ratios(self) -> list[float]:
        return [p / o for p, o in zip(self.peer, self.ours, strict=True)]

    def __str__(self) -> str:
        ratios = self.ratios
        return (
            f"| {self.work} | {self.against} | {statistics.median(ratios):.1f}x ({min(ratios):.1f}-{max(ratios):.1f}) "
            f"| {statistics.median(self.peer):.2f} {self.unit} | {statistics.median(self.ours):.2f} {self.unit} "
            f"| {self.remark} |"
        )


HEADER = "| work | against | ratio: median (range) | peer | ours | remark |\n| --- | --- | --- | --- | --- | --- |"


def compare(work: str, against: str, peer: Callable[[], str], ours: Callable[[], str], *, repeats: int) -> Row:
    """Run both `repeats` times, alternating. Each returns what it reached, shown as the remark of the last repeat."""
    peer_seconds, our_seconds, remark = [], [], ""
    for _ in range(repeats):
        start = time.perf_counter()
        theirs = peer()
        middle = time.perf_counter()
        mine = ours()
        end = time.perf_counter()
        peer_seconds.append(middle - start)
        our_seconds.append(end - middle)
        remark = f"peer {theirs}; ours {mine}; {torch.get_num_threads()} threads"
    return Row(work, against, peer_seconds, our_seconds, remark)


def peak_memory(step: Callable[[], object]) -> float:
    """The most `step` holds at once beyond what was there before, MiB on the CPU, its results included.

    The largest running sum over the profiler's record of every allocation and release, of a second call.
    """
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    if not peak:
        raise RuntimeError(
            "the profiler recorded no allocation: nothing was computed on the CPU, or its format changed"
        )
    return peak / 2**20


def flops(step: Callable[[], object]) -> int:
    """FLOPs of the matrix products in `step`, as torch counts them; elementwise work is not counted."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()
