"""An order and the job that mails its confirmation, in one SQLite transaction; the mail and the job's end in another.

1. ``place_order`` writes the order and enqueues the job on the same connection: both are committed, or neither.
2. ``confirm`` ends in its own transaction: the mail is noted exactly once, however often the job has to be started.
"""

import contextlib
import sqlite3
from collections.abc import Iterator

from mouso import Context, Mouso

STORE = "outbox.db"
app = Mouso("outbox", broker=f"sqlite:///{STORE}")

TABLES = """
CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS mails (job TEXT NOT NULL, text TEXT NOT NULL);
"""


@contextlib.contextmanager
def connected() -> Iterator[sqlite3.Connection]:
    """A connection in a transaction of its own."""
    connection = sqlite3.connect(STORE, timeout=5)
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # Mouso makes the checkpoints of its file
    try:
        with connection:
            yield connection
    finally:
        connection.close()


@app.task
def confirm(ctx: Context, order: int) -> str:
    """Notes the mail that confirms an order."""
    db = ctx.transaction()
    (item,) = db.execute("SELECT item FROM orders WHERE id = ?", (order,)).fetchone()
    text = f"Order {order}: one {item} is on its way."
    db.execute("INSERT INTO mails VALUES (?, ?)", (ctx.job_id, text))
    return text


def place_order(item: str, *, fail: bool = False) -> None:
    with connected() as connection, app.enqueue_in(connection):
        (order,) = connection.execute("INSERT INTO orders (item) VALUES (?) RETURNING id", (item,)).fetchone()
        confirm.delay(order)
        if fail:
            raise RuntimeError("the card was refused")


if __name__ == "__main__":
    with connected() as connection:
        connection.executescript(TABLES)
    place_order("book")
    with contextlib.suppress(RuntimeError):
        place_order("diamond", fail=True)
    for job in app.jobs():
        print(app.job(job.id).get(timeout=30))
    with connected() as connection:
        print(connection.execute("SELECT count(*) FROM orders").fetchone()[0], "order")
        print(connection.execute("SELECT count(*) FROM mails").fetchone()[0], "mail")
