"""Tasks of every shape, for the files whose types are checked; nothing here is run."""

from mouso import Context, Mouso

app = Mouso("typing", broker="memory://typing")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def greet(name: str, greeting: str = "Hello") -> str:
    return f"{greeting}, {name}"


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task
def rank(ctx: Context, name: str) -> list[int]:
    return [ctx.attempt, len(name)]


@app.task
async def render(ctx: Context, pages: int, *, draft: bool) -> None:
    ctx.progress(pages, message=str(draft))


@app.task(queue="mail", attempts=8, timeout="30s", priority=10, expires="1h")
def send(to: str, subject: str) -> None:
    print(to, subject)


@app.task(retry_on=(OSError,), discard_on=(ValueError,))
async def deliver(ctx: Context, to: str) -> int:
    return len(to) + ctx.attempt


@app.task(bind=True)
def old(self: Context, x: int) -> str:
    return f"{self.request.id} {x}"


@app.task(bind=True, queue="low")
async def old_async(self: Context, x: int) -> str:
    return f"{self.request.id} {x}"


@app.task
def total(*numbers: float, scale: float = 1.0) -> float:
    return sum(numbers) * scale


@app.task
def log(value: object, level: int = 0) -> None:
    print(value, level)


@app.task
def nothing() -> None: ...


@app.task
def ship(order: int, to: str, street: str, town: str, weight: float, fast: bool = False) -> str:
    return f"{order} {to} {street} {town} {weight} {fast}"


@app.task
def matrix(a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: str) -> int:
    return a + b + c + d + e + f + g + len(h)
