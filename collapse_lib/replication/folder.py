"""The output folder of one profile: where things lie, and that only one run at a time writes there."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout


class FolderError(OSError):
    """An output folder that cannot be written, or that another run is writing."""


@dataclass(frozen=True)
class Folder:
    """The places below `root`, which is executed/<profile>; a key is paper/slug."""

    root: Path

    def result(self, key: str) -> Path:
        return self.root / f"{key}.ipynb"

    def running(self, key: str) -> Path:
        """Where a notebook grows until it is a result; here, since a rename is atomic within one file system only."""
        return self._running / f"{key}.ipynb"

    def log(self, key: str) -> Path:
        return self.root / "logs" / f"{key}.log"

    def failed(self, key: str) -> Path:
        """What a failed notebook had executed: beside its log, so that nobody takes it for a result."""
        return self.root / "logs" / f"{key}.failed.ipynb"

    @property
    def report_html(self) -> Path:
        return self.root / "report.html"

    @property
    def report_json(self) -> Path:
        return self.root / "report.json"

    @property
    def _running(self) -> Path:
        return self.root / ".running"

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """Holds the folder for one run and clears what a run that was killed left; FolderError if that cannot be."""
        lock = FileLock(self.root / ".lock", timeout=0)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise FolderError(
                f"another run is writing {self.root}; wait for it, stop it, or choose another folder with --out"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            try:
                if self._running.exists():
                    shutil.rmtree(self._running)
                self._running.mkdir()
            except OSError as error:
                raise self._unwritable(error) from error
            yield
        finally:
            shutil.rmtree(self._running, ignore_errors=True)
            lock.release()

    def _unwritable(self, error: OSError) -> FolderError:
        return FolderError(f"cannot write {self.root}: {error.strerror}; choose another folder with --out")
