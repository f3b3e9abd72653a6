"""``mouso migrate``."""

from __future__ import annotations

import click

from mouso.brokers.base import Script
from mouso.cli.base import Target, app_command
from mouso.cli.output import say, write_json


@app_command(example="mouso migrate shop:app")
@click.option(
    "--sql", "as_sql", is_flag=True, help="Print the SQL that makes the schema, and change nothing (PostgreSQL)."
)
@click.option(
    "--roles",
    is_flag=True,
    help="Print the SQL that makes roles with the least rights, and change nothing (PostgreSQL).",
)
def migrate(target: Target, as_json: bool, as_sql: bool, roles: bool) -> None:
    """Bring the store's schema up to date.

    Every use of an empty store does that by itself, and of an older SQLite file; a deployment may prefer to do it
    before anything else starts.
    """
    with target.open() as app:
        url = app.broker.url
        if as_sql or roles:
            sql = app.broker.sql(Script.ROLES if roles else Script.SCHEMA)
        else:
            before, after = app.broker.migrate()
    if as_sql or roles:
        click.echo(sql, nl=False)
    elif as_json:
        write_json({"broker": url, "before": before, "after": after})
    elif before == after:
        say(f"{url}: schema version {after}, up to date")
    else:
        say(f"{url}: schema version {before}, now {after}")
