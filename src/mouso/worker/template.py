"""A process that has imported the app and is copied: a fork starts in milliseconds, and shares the app's memory.

    python -m mouso.worker.template WORKER CONTROL LOG_LEVEL LOG_FORMAT OUTPUT APP FOLDER

It runs no job, has one thread and opens nothing, so its copies start from a state that is fit to be copied. An app
that starts threads when it is imported has no such state, and no template.

Over a socket of whole messages (``SOCK_SEQPACKET``) the supervisor sends ``Fork`` with the child's socket and board;
the template answers ``Born``, with a descriptor of the process, and later ``Ended``.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import select
import signal
import socket
import sys
from pathlib import Path

import msgspec

from mouso.errors import BrokerError, ConfigError
from mouso.isolation import OOM_TEMPLATE, Limits, offer_to_kernel
from mouso.loading import load_app
from mouso.worker import child, signals
from mouso.worker.arenas import give_back, share_arenas
from mouso.worker.cgroups import Group
from mouso.worker.launch import end_programs, refusal
from mouso.worker.output import open_output
from mouso.worker.stacks import dump_on_quit

MAX_MESSAGE = 64 << 10
_MOST_SAID = 8 << 10
_PASSED = 2
"""Descriptors that come with ``Fork``."""

log = logging.getLogger("mouso.worker")


class Fork(msgspec.Struct, tag="fork", array_like=True):
    """Make a child with so many slots, in the cgroup with this directory."""

    slots: int
    grace: float
    limits: Limits | None
    cgroup: str


class Ready(msgspec.Struct, tag="ready", array_like=True):
    """The app is imported."""


class Unfit(msgspec.Struct, tag="unfit", array_like=True):
    """There is nothing to copy, and why: the app cannot be loaded, or it has threads."""

    why: str
    loaded: bool


class Born(msgspec.Struct, tag="born", array_like=True):
    """A child was made; its pidfd comes with the message."""

    pid: int


class Unborn(msgspec.Struct, tag="unborn", array_like=True):
    """The system lets no child be made."""

    why: str


class Ended(msgspec.Struct, tag="ended", array_like=True):
    """A child has ended, with this exit code (negative for a signal), most KiB resident, and seconds of CPU."""

    pid: int
    code: int
    max_rss: int
    cpu: float


FromTemplate = Ready | Unfit | Born | Unborn | Ended

encode = msgspec.msgpack.Encoder().encode
from_template = msgspec.msgpack.Decoder(FromTemplate)
_fork = msgspec.msgpack.Decoder(Fork)


def main(arguments: list[str]) -> int:
    """The process's entry."""
    worker, control_descriptor, level, form, output, path, folder = arguments
    signals.ignore_ends()
    dump_on_quit()
    share_arenas()
    offer_to_kernel(OOM_TEMPLATE)
    open_output(level, form, output)
    os.set_inheritable(int(control_descriptor), False)
    control = socket.socket(fileno=int(control_descriptor))
    found = _load(path, folder)
    try:
        control.send(encode(found))
        return 2 if isinstance(found, Unfit) else _serve(worker, control, path, folder)
    except ConnectionError:  # the supervisor is gone; a copy is past this when it talks to it
        return 0
    except OSError as error:
        log.error("process %d cannot go on: %s", os.getpid(), refusal(error))
        return 1


def _load(path: str, folder: str) -> Ready | Unfit:
    """Imports the app; returns whether this process can be copied now."""
    try:
        load_app(path, folder=Path(folder) if folder else None)
        give_back()
    except (ConfigError, BrokerError) as error:
        return Unfit(str(error)[:_MOST_SAID], loaded=False)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return Unfit(f"importing {path} starts {threads - 1} threads, which a copy would not have", loaded=True)
    gc.collect()
    gc.freeze()  # or the copies' collectors would write to, and so copy, every page with an object
    return Ready()


def _serve(worker: str, control: socket.socket, path: str, folder: str) -> int:
    """Makes children until the supervisor is gone. In a child it does not return, but ends the process."""
    waking, wake = os.pipe()
    for descriptor in (waking, wake):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(waking, select.POLLIN)
    copies: dict[int, bool] = {}
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if waking in ready:
            os.read(waking, 4096)
            _report_ended(control, copies)
        if control.fileno() in ready:
            data, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, _PASSED)
            if not data:
                return 0  # the supervisor is gone
            fork = _fork.decode(data)
            try:
                if len(descriptors) < _PASSED:  # there was no number left for them here
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                pid = signals.fork()
            except OSError as error:
                control.send(encode(Unborn(f"its template: {refusal(error)}")))
            else:
                if pid == 0:
                    control.close()
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.close(waking)
                    os.close(wake)
                    sys.exit(_become_child(worker, fork, descriptors, path, folder))
                try:
                    pidfd = os.pidfd_open(pid)
                except OSError as error:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    control.send(encode(Unborn(f"its template: {refusal(error)}")))
                else:
                    copies[pid] = fork.limits is not None
                    socket.send_fds(control, [encode(Born(pid))], [pidfd])
                    os.close(pidfd)
            for descriptor in descriptors:
                os.close(descriptor)


def _become_child(worker: str, fork: Fork, descriptors: list[int], path: str, folder: str) -> int:
    os.setsid()
    if fork.cgroup:
        Group(Path(fork.cgroup)).enter()
    sock, board = descriptors
    return child.serve(worker, path, folder, sock, board, fork.slots, fork.grace, fork.limits)


def _report_ended(control: socket.socket, copies: dict[int, bool]) -> None:
    """Reaps the copies that have ended, of which is known whether each ran an isolated job."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        alone = copies.pop(found.si_pid, None)
        if alone is not None:
            end_programs(found.si_pid, alone=alone)
        pid, status, usage = os.wait4(found.si_pid, 0)
        if alone is not None:  # else it is a program that the app started when it was imported
            cpu = usage.ru_utime + usage.ru_stime
            control.send(encode(Ended(pid, os.waitstatus_to_exitcode(status), usage.ru_maxrss, cpu)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
