"""A job that reports how far it is, and a caller that shows it as a bar."""

import sys
import time

from mouso import Context, Mouso

app = Mouso("progress_bar")


@app.task
def resize(ctx: Context, pictures: list[str], width: int) -> int:
    """Pretends to resize pictures; ``track`` reports progress and lets the job be cancelled between two of them."""
    for _ in ctx.track(pictures, message=f"to {width} px"):
        time.sleep(0.02)
    return len(pictures)


def bar(done: float, total: float, message: str) -> str:
    full = int(30 * done / total)
    return f"[{'#' * full}{'.' * (30 - full)}] {done:.0f}/{total:.0f} {message}"


if __name__ == "__main__":
    job = resize.delay([f"picture-{n}.jpg" for n in range(50)], 800)
    for update in job.watch(timeout=30):
        if update.progress is not None:
            print(bar(update.progress.done, update.progress.total or 1, update.progress.message))
        else:
            print(update.state, file=sys.stderr)
    print(job.get(), "pictures")
