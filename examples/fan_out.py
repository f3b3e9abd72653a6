"""A job that enqueues others. None waits for another one, so one slot is enough; the last to end writes the total.

Chains, groups and chords will do this with less code; they come in a later version.
"""

import sqlite3
import time
from pathlib import Path

from mouso import Context, Mouso

app = Mouso("fan_out", broker="sqlite:///fan_out.db")
TOTALS = Path("totals.db")


@app.task
def count_all(texts: list[str]) -> int:
    """Makes one job of each text."""
    return len(count_one.map([(text, len(texts)) for text in texts]))


@app.task
def count_one(ctx: Context, text: str, of: int) -> None:
    """Counts one, idempotently: a second run of the same job replaces its row."""
    connection = sqlite3.connect(TOTALS, timeout=10)
    try:
        with connection:
            connection.execute("INSERT OR REPLACE INTO counts VALUES (?, ?)", (ctx.job_id, len(text.split())))
            done, words = connection.execute("SELECT count(*), sum(words) FROM counts").fetchone()
    finally:
        connection.close()
    if done == of:
        report.options(unique="report").delay(words)


@app.task
def report(words: int) -> int:
    return words


if __name__ == "__main__":
    TOTALS.unlink(missing_ok=True)
    with sqlite3.connect(TOTALS) as connection:
        connection.execute("CREATE TABLE counts (job TEXT PRIMARY KEY, words INTEGER)")
    connection.close()
    print(count_all.delay(["one two", "three", "four five six"]).get(timeout=30), "jobs")
    while not (found := app.jobs(task=report.name)):
        time.sleep(0.01)
    print(app.job(found[0].id).get(timeout=30), "words")
