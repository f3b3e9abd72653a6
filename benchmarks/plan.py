"""What every benchmark is told."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.rig import Folders, HueyRig, MousoRig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to run.

    Attributes:
        folders: For files; emptied by the benchmarks themselves.
        runs: How often everything is measured.
        quick: Whether a tenth of the work is enough, to see that all works.
        peers: The interpreter with the peers in it.
    """

    folders: Folders
    runs: int
    quick: bool
    peers: Path

    def jobs(self, count: int) -> int:
        """So many jobs, or a tenth."""
        return count // 10 if self.quick else count

    def mouso(self, synchronous: str = "full", app: str = "benchmarks.jobs") -> MousoRig:
        """Mouso on a new file."""
        return MousoRig(self.folders, synchronous, app)

    def huey(self, *, fsync: bool) -> HueyRig:
        """Huey on a new file."""
        return HueyRig(self.folders, self.peers, fsync=fsync)
