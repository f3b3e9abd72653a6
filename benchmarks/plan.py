"""What every benchmark is told."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.rig import HueyRig, MousoRig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to run.

    Attributes:
        folder: For files, on a real disk; emptied by the benchmarks themselves.
        runs: How often everything is measured.
        quick: Whether a tenth of the work is enough, to see that all works.
        peers: The interpreter with the peers in it.
    """

    folder: Path
    runs: int
    quick: bool
    peers: Path

    def jobs(self, count: int) -> int:
        """So many jobs, or a tenth."""
        return count // 10 if self.quick else count

    def mouso(self, synchronous: str = "full") -> MousoRig:
        """Mouso on a new file."""
        return MousoRig(self.folder, synchronous)

    def huey(self, *, fsync: bool) -> HueyRig:
        """Huey on a new file."""
        return HueyRig(self.folder, self.peers, fsync=fsync)
