"""``mouso pause``, ``mouso resume`` and ``mouso purge``."""

from __future__ import annotations

from datetime import timedelta

import click

from mouso.brokers.base import BATCH
from mouso.cli.base import Target, app_command
from mouso.cli.bulk import confirm, progress_bar
from mouso.cli.names import known_queue, require_queue
from mouso.cli.output import say, write_json
from mouso.clock import SYSTEM, moment, seconds
from mouso.config import counted
from mouso.errors import OptionError
from mouso.job import LIVE, JobState, check_name


@app_command("QUEUE", example="mouso pause shop:app mail --for 10m")
@click.option("--for", "duration", metavar="DURATION", help="Go on by itself after this time.")
def pause(target: Target, duration: str | None, as_json: bool) -> None:
    """Stop workers from taking jobs of a queue. Running jobs go on, and jobs can still be enqueued."""
    name = check_name(target.values[0], "queue")
    try:
        until = None if duration is None else moment(SYSTEM.now()) + timedelta(seconds=seconds(duration, "--for"))
    except ValueError as error:
        raise OptionError(str(error)) from None
    with target.open() as app:
        known_queue(app, name)
        app.pause(name, until)
    _tell(name, "paused" if until is None else f"paused until {until:%Y-%m-%d %H:%M:%S} UTC", paused=True, json=as_json)


@app_command("QUEUE", example="mouso resume shop:app mail")
def resume(target: Target, as_json: bool) -> None:
    """End a pause."""
    name = check_name(target.values[0], "queue")
    with target.open() as app:
        require_queue(app, name)
        app.resume(name)
    _tell(name, "resumed", paused=False, json=as_json)


def _tell(name: str, what: str, *, paused: bool, json: bool) -> None:
    if json:
        write_json({"queue": name, "paused": paused})
    else:
        say(f"{name}  {what}")


@app_command("QUEUE", example="mouso purge shop:app mail --yes")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(target: Target, yes: bool, as_json: bool) -> None:
    """Delete all waiting jobs of a queue for good. Running and finished ones stay."""
    name = check_name(target.values[0], "queue")
    with target.open() as app:
        require_queue(app, name)
        waiting = sum(
            queue.counts.get(state, 0)
            for queue in app.queues()
            if queue.name == name
            for state in LIVE - {JobState.RUNNING}
        )
        if waiting:
            confirm(f"delete {counted(waiting, 'waiting job')} of queue {name!r} for good?", yes=yes)
        purged = 0
        with progress_bar("purging", waiting) as advance:
            while purged < waiting and (count := app.broker.purge(name, min(BATCH, waiting - purged))):
                purged += count
                advance(count)
    if as_json:
        write_json({"queue": name, "purged": purged})
    else:
        say(f"{purged:,} deleted")
