"""A job that is retried, gives up, is found among the dead ones, and runs again once its cause is gone."""

from pathlib import Path

from mouso import JobFailed, Mouso, constant

app = Mouso("dead_letters")


@app.task(attempts=3, backoff=constant("50ms"), retry_on=(OSError,))
def count_words(path: str) -> int:
    return len(Path(path).read_text().split())


if __name__ == "__main__":
    letter = Path("letter.txt").absolute()
    letter.unlink(missing_ok=True)
    job = count_words.delay(str(letter))
    try:
        job.get(timeout=30)
    except JobFailed as failed:
        print(f"dead after {len(job.errors)} runs: {failed.error.type}")

    letter.write_text("three short words")
    for dead in app.jobs(state="dead", task=count_words.name):
        print("retry:", app.job(dead.id).retry())
    print(job.get(timeout=30), "words")
    letter.unlink()
