"""``mouso migrate``."""

from __future__ import annotations

from mouso.cli.base import Target, app_command
from mouso.cli.output import say, write_json


@app_command(example="mouso migrate shop:app")
def migrate(target: Target, as_json: bool) -> None:
    """Bring the store's schema up to date.

    Every use of a store does that by itself; a deployment may prefer to do it before anything else starts.
    """
    with target.open() as app:
        before, after = app.broker.migrate()
        url = app.broker.url
    if as_json:
        write_json({"broker": url, "before": before, "after": after})
    elif before == after:
        say(f"{url}: schema version {after}, up to date")
    else:
        say(f"{url}: schema version {before}, now {after}")
