"""The smallest program: one task, one call, one result."""

from mouso import Mouso

app = Mouso("quickstart")


@app.task
def add(x: int, y: int) -> int:
    return x + y


if __name__ == "__main__":
    job = add.delay(4, 4)
    print(f"job {job.id} is stored")
    print("4 + 4 =", job.get(timeout=30))
