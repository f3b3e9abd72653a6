"""Replaces the children when the app's code changes (``--reload``); for development.

The files are looked at: twice a second, or, where the package ``watchfiles`` is installed, when it tells that something
has changed, and every two seconds all the same. It is a hint; what the files say is the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.worker import WorkerOptions
from mouso.worker.fleet import Fleet

_POLL, _POLL_TOLD = 0.5, 2.0
"""Seconds between two looks, without and with hints."""
_SETTLE = 0.1
_MOST_SETTLING = 20
"""Looks until the files are as they were at the last: an editor or git writes them one after the other."""
_COST = 20
"""Looking takes at most one part in so many of the time."""
_DEBOUNCE, _STEP = 200, 50
"""Milliseconds that hints are gathered at most, and without a further one."""
_GIVE_UP_AGAIN = 0.5
_NAMED = 3
_OTHERS = ("__pycache__", "node_modules", "site-packages")

Stamps = dict[str, tuple[int, int, int]]

log = logging.getLogger("mouso.worker")


def stamps(folder: str) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Path, and time of change (ns), size and inode, of each Python file below a folder.

    Left out are hidden folders, virtual environments and what belongs to nobody's app.
    """
    below = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not (entry.name.startswith(".") or entry.name in _OTHERS):
                        below.append(entry.path)
                elif entry.name.endswith(".py") and not entry.name.startswith("."):
                    with contextlib.suppress(OSError):
                        status = entry.stat()
                        yield entry.path, (status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError:  # it is gone, or closed to this user
        return
    for path in below:
        if not os.path.exists(os.path.join(path, "pyvenv.cfg")):
            yield from stamps(path)


def folders(options: WorkerOptions) -> list[str]:
    """The folders to watch: the one that the worker was started in, and that of an app which lies elsewhere."""
    here = []
    with contextlib.suppress(FileNotFoundError):  # it was deleted, and the app lies elsewhere
        here.append(os.path.realpath(options.folder or os.getcwd()))
    name = options.app.partition(":")[0].partition(".")[0]
    found = PathFinder.find_spec(name, here)
    if found is None:
        with contextlib.suppress(ImportError, ValueError):
            found = importlib.util.find_spec(name)
    places = [] if found is None else [*(found.submodule_search_locations or ()), *_beside(found.origin)]
    elsewhere = {os.path.realpath(place) for place in places if "site-packages" not in Path(place).parts}
    return [*here, *sorted(place for place in elsewhere if not any(Path(place).is_relative_to(each) for each in here))]


def _beside(origin: str | None) -> list[str]:
    return [os.path.dirname(origin)] if origin and os.path.isabs(origin) else []


def forget_compiled(paths: Collection[str]) -> None:
    """Deletes what Python has compiled of these files: it tells versions apart by whole seconds and size only."""
    for path in paths:
        with contextlib.suppress(OSError, NotImplementedError):
            compiled = Path(importlib.util.cache_from_source(path))
            for file in compiled.parent.glob(f"{compiled.stem}.*pyc"):
                file.unlink(missing_ok=True)


class Watch:
    """Knows when the app's files change, from its making on.

    Attributes:
        folders: Where they lie.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.folders = folders(options)
        self._took = 0.0
        self._seen = self._look()
        self._hint = asyncio.Event()
        self._poll = _POLL
        self._listener: asyncio.Task[None] | None = None

    def _look(self) -> Stamps:
        began = SYSTEM.monotonic()
        seen = {path: stamp for folder in self.folders for path, stamp in stamps(folder)}
        self._took = SYSTEM.monotonic() - began
        return seen

    def begin(self) -> None:
        """Listens for hints, if there is something that gives them."""
        how = "by looking twice a second; with the package watchfiles it is sooner"
        if importlib.util.find_spec("watchfiles") is not None:
            how, self._poll = "with watchfiles", _POLL_TOLD
            self._listener = asyncio.create_task(self._listen())
        log.info("reload: %d Python files are watched below %s, %s", len(self._seen), " and ".join(self.folders), how)

    def end(self) -> None:
        """Listens no longer."""
        if self._listener is not None:
            self._listener.cancel()

    async def _listen(self) -> None:
        from watchfiles import awatch

        try:
            async for _ in awatch(
                *self.folders,
                watch_filter=lambda _, path: path.endswith(".py"),
                debounce=_DEBOUNCE,
                step=_STEP,
                ignore_permission_denied=True,
            ):
                self._hint.set()
        except (OSError, RuntimeError) as error:  # such as too many folders for the system
            log.warning("reload: watchfiles fails, so the files are looked at twice a second: %s", one_line(error))
            self._poll = _POLL

    async def changed(self) -> list[str]:
        """Waits until files have changed and are quiet again; returns their paths."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(self._poll, self._took * _COST)):
                    await self._hint.wait()
            self._hint.clear()
            now = await asyncio.to_thread(self._look)
            if now == self._seen:
                continue
            for _ in range(_MOST_SETTLING):
                await asyncio.sleep(_SETTLE)
                before, now = now, await asyncio.to_thread(self._look)
                if now == before:
                    break
            changed = sorted(path for path in now.keys() | self._seen.keys() if now.get(path) != self._seen.get(path))
            self._seen = now
            if changed:
                return changed


async def reload(fleet: Fleet, watch: Watch) -> None:
    """Replaces the children whenever the app's files have changed; runs until it is cancelled."""
    watch.begin()
    coming = asyncio.create_task(watch.changed())
    try:
        while True:
            changed = await coming
            coming = asyncio.create_task(watch.changed())
            await _renew(fleet, changed, coming)
    finally:
        coming.cancel()
        watch.end()


async def _renew(fleet: Fleet, changed: Sequence[str], coming: asyncio.Task[list[str]]) -> None:
    """Replaces the children, unless the next change comes before they could start: then what starts is outdated."""
    began = SYSTEM.monotonic()
    log.info("reload: %s", _told(changed))
    forget_compiled(changed)
    renewal = asyncio.create_task(fleet.renew())
    try:
        await asyncio.wait({renewal, coming}, return_when=asyncio.FIRST_COMPLETED)
        outdated = not renewal.done()
        while not renewal.done():
            fleet.give_up()
            await asyncio.wait({renewal}, timeout=_GIVE_UP_AGAIN)
        why = renewal.result()
    finally:
        renewal.cancel()
    if why and not (outdated or fleet.draining):
        log.error("reload: the new version cannot start, the old one goes on: %s", why)
    elif not why:
        log.info("reload: the new version runs, after %.1f s", SYSTEM.monotonic() - began)


def _told(changed: Sequence[str]) -> str:
    names = [os.path.basename(path) for path in changed[:_NAMED]]
    return f"{', '.join(names)}{' and more' * (len(changed) > _NAMED)} changed"
