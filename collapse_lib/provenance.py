"""What a run was made with: versions, source state, device, wall time, data and seeds, shown by the run itself.

    watch = provenance.start()                                  # first code cell
    device = provenance.pick_device(device)
    ...
    watch.report(data=[train], device=device, seeds=seeds)      # last cell

Nothing that names the machine, its user or its folders is looked at, so the output can be published.
"""

import html
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from IPython.display import display

from collapse_lib import __version__
from collapse_lib.checkout import library_commit
from collapse_lib.data import ImageSet

MIME = "application/vnd.collapse-lib.provenance+json"


class DeviceError(RuntimeError):
    """The device that was asked for is not there."""


def pick_device(name: str) -> torch.device:
    """The device called "cpu" or "cuda"; "auto" is the GPU if torch can use one, else the CPU.

    Raises DeviceError if "cuda" is asked for without a usable GPU, ValueError on any other name.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"no device {name!r}; use 'auto', 'cpu' or 'cuda'")
    usable = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not usable:
        raise DeviceError(
            f"device 'cuda' was asked for, but torch {torch.__version__} finds no usable GPU; "
            "use device 'cpu' or 'auto', or install a CUDA build of torch and a driver that fits it"
        )
    return torch.device("cuda" if usable else "cpu")


@dataclass(frozen=True)
class DataUsed:
    """An image set as used: its first `n` images; the checksum is that of the whole split."""

    name: str
    split: str
    n: int
    checksum: str
    source: str
    licence: str


@dataclass(frozen=True)
class Provenance:
    """The conditions of one run; `commit` is None outside a checkout, `cpu_threads` those that torch may use."""

    versions: dict[str, str]
    platform: str
    commit: str | None
    dirty: bool | None
    device: str
    device_name: str
    cpu_threads: int
    wall_s: float
    data: tuple[DataUsed, ...]
    seeds: tuple[int, ...]

    def rows(self) -> list[tuple[str, str]]:
        """What is shown, line by line: what it is, its value."""
        source = "unknown (the library is not in a git checkout)"
        if self.commit is not None:
            source = self.commit[:12] + (", with uncommitted changes" if self.dirty else "")
        rows = [
            ("versions", ", ".join(f"{name} {number}" for name, number in self.versions.items())),
            ("commit", source),
            ("platform", self.platform),
            ("device", f"{self.device} ({self.device_name}), {self.cpu_threads} CPU thread(s)"),
            ("wall time", _duration(self.wall_s)),
            ("seeds", ", ".join(map(str, self.seeds)) or "none"),
        ]
        for used in self.data:
            rows.append(("data", f"{used.name} {used.split}, first {used.n} images; {used.source}; {used.licence}"))
            rows.append(("sha256 of the split", used.checksum))
        return rows

    def __str__(self) -> str:
        return "\n".join(f"{name + ':':<21}{value}" for name, value in self.rows())

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        style = 'style="text-align:left; padding:0.2em 0.8em"'
        rows = (f"<tr><th {style}>{name}</th><td {style}>{html.escape(value)}</td></tr>" for name, value in self.rows())
        return {"text/html": f"<table>{''.join(rows)}</table>", "text/plain": str(self), MIME: asdict(self)}


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min {rest:02d} s" if hours else f"{minutes} min {rest:02d} s"


def _versions() -> dict[str, str]:
    versions = {
        "python": platform.python_version(),
        "collapse_lib": __version__,
        "torch": torch.__version__,
    }
    for package in ("torchvision", "numpy"):
        # torchvision is only needed to download; asking its metadata spares the import.
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def cpu_name(listing: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model as Linux lists it; elsewhere, what Python knows of it."""
    try:
        lines = listing.read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


class Watch:
    """Takes the time from its making on; see `start`."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        # Now, not at the end of a long run: this is the state that the code was imported from.
        self._commit = library_commit()

    def read(
        self, *, data: Iterable[ImageSet] = (), device: torch.device | str = "cpu", seeds: Iterable[int] = ()
    ) -> Provenance:
        """The conditions of the run so far."""
        device = device if isinstance(device, torch.device) else pick_device(device)
        return Provenance(
            versions=_versions(),
            platform=f"{platform.system()} {platform.machine()}",
            commit=self._commit.sha if self._commit else None,
            dirty=self._commit.dirty if self._commit else None,
            device=str(device),
            device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            cpu_threads=torch.get_num_threads(),
            wall_s=round(time.perf_counter() - self._begun, 3),
            data=tuple(
                DataUsed(used.name, used.split, len(used), used.checksum, used.source, used.licence) for used in data
            ),
            seeds=tuple(int(seed) for seed in seeds),
        )

    def report(
        self, *, data: Iterable[ImageSet] = (), device: torch.device | str = "cpu", seeds: Iterable[int] = ()
    ) -> None:
        """Displays the conditions of the run as one output: a table, the same as text, and as JSON."""
        display(self.read(data=data, device=device, seeds=seeds))


def start() -> Watch:
    """Starts the clock of a run, and notes which state of the library it is made with."""
    return Watch()
