"""Two pieces of work measured side by side: alternating, several repeats, ratios of times taken in the same run."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One line of the table: `peer` and `ours` are seconds, one a repeat."""

    work: str
    against: str
    peer: list[float]
    ours: list[float]
    remark: str

    @property
    def ratios(self) -> list[float]:
        return [p / o for p, o in zip(self.peer, self.ours, strict=True)]

    def __str__(self) -> str:
        ratios = self.ratios
        return (
            f"| {self.work} | {self.against} | {statistics.median(ratios):.1f}x ({min(ratios):.1f}-{max(ratios):.1f}) "
            f"| {statistics.median(self.peer):.2f} s | {statistics.median(self.ours):.2f} s | {self.remark} |"
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
