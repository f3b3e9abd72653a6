"""Jobs that are stopped: by their own timeout, or because somebody cancels them."""

import asyncio
import time

from mouso import Context, JobCancelled, JobFailed, JobHandle, Mouso

app = Mouso("stop_jobs")


@app.task(timeout="300ms", attempts=1)
async def slow_page() -> None:
    await asyncio.sleep(60)


@app.task
def long_export(ctx: Context, rows: int) -> int:
    for row in range(rows):
        ctx.check()  # raises StopRequested when the job is to stop
        ctx.progress(row, rows)
        time.sleep(0.01)
    return rows


def wait_running(job: JobHandle[int]) -> None:
    for update in job.watch(timeout=30):
        if update.state == "running":
            return


if __name__ == "__main__":
    try:
        slow_page.delay().get(timeout=30)
    except JobFailed as failed:
        print("timeout:", failed.error.message)

    waiting = long_export.options(delay="1h").delay(10)
    print("one that waits:", waiting.cancel())

    running = long_export.delay(100_000)
    wait_running(running)
    print("one that runs:", running.cancel())
    try:
        running.get(timeout=30)
    except JobCancelled:
        print("and it stopped")
