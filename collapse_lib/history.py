"""What `training.fit` keeps of a member while it trains: its losses, row by row, and the state that it ends with."""

import numpy as np
from torch import Tensor

from collapse_lib.stacking import Plateau


class MemberHistory:
    """What one member leaves behind."""

    def __init__(self) -> None:
        self.status, self.steps, self.stacked = "finished", 0, False
        self.names: tuple[str, ...] = ()
        self.starts: list[int] = []  # first step of each history row
        self.sums: list[np.ndarray] = []  # the objective's terms, summed over the row's steps
        self.counts: list[int] = []
        self.evaluations: list[dict[str, float]] = []
        self.state: dict[str, Tensor] = {}

    def absorb(self, start: int, values: np.ndarray, row: int) -> None:
        """Add per-step values (steps, terms) from step `start` on to rows of `row` steps."""
        for step, terms in enumerate(values, start):
            if not self.starts or step % row == 0:
                self.starts.append(step)
                self.sums.append(np.zeros_like(terms))
                self.counts.append(0)
            self.sums[-1] = self.sums[-1] + terms
            self.counts[-1] += 1
        self.steps = start + len(values)

    def means(self) -> np.ndarray:
        """(rows, terms)."""
        return np.array(self.sums) / np.array(self.counts)[:, None]

    def on_plateau(self, rule: Plateau) -> bool:
        losses = self.means()[:, 0]
        if len(losses) <= rule.patience:
            return False
        return bool(losses[-rule.patience :].min() >= losses[: -rule.patience].min() - rule.min_delta)
