"""What every benchmark is told."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rig import Folders, HueyRig, MousoRig, PeerRig
from benchmarks.stores import Store


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to run.

    Attributes:
        folders: For files; emptied by the benchmarks themselves.
        runs: How often everything is measured.
        quick: Whether a tenth of the work is enough, to see that all works.
        peers: The interpreter with the peers in it.
        servers: Ends the servers that nobody has discarded, however the program ends.
    """

    folders: Folders
    runs: int
    quick: bool
    peers: Path
    servers: ExitStack

    def jobs(self, count: int) -> int:
        """So many jobs, or a tenth."""
        return count // 10 if self.quick else count

    def mouso(self, synchronous: str = "full", app: str = "benchmarks.jobs", server: Store | None = None) -> MousoRig:
        """Mouso on a new file, or on a server."""
        return MousoRig(self.folders, synchronous, app, server)

    def huey(self, *, fsync: bool) -> HueyRig:
        """Huey on a new file."""
        return HueyRig(self.folders, self.peers, fsync=fsync)

    def peer(self, name: str, server: Store, settings: Mapping[str, str]) -> PeerRig:
        """A peer on a server."""
        return PeerRig(self.folders, self.peers, name, server, settings)

    def start(self, kind: Callable[[Path], Store]) -> Store:
        """A new server, which whoever uses it discards."""
        folder = self.folders.disk / f"server-{time.monotonic_ns()}"
        folder.mkdir()
        server = kind(folder)
        self.servers.callback(server.discard)
        server.start()
        return server
