"""Wrong options, and wrong calls behind them; each line marked ``# wrong`` must be rejected, no other."""

from mouso import Mouso
from tests.typing.tasks import add, fetch, rank

app = Mouso("typing", broker="memory://typing")

add.options(delay="10m").delay(4, 4)
add.options(delay="10m").delay(4, "4")  # wrong: type
add.options(delay="10m").delay(4)  # wrong: one is missing
add.options(delay="10m").delay(4, 4, 4)  # wrong: one too many
rank.options(priority=3).delay(3)  # wrong: type
fetch.options(queue="low").delay()  # wrong: one is missing
add.options(deley=3)  # wrong: no such option
add.options(priority="high")  # wrong: type
add.options(queue=3)  # wrong: type
add.options(retry_on=OSError("x"))  # wrong: an instance
add.apply_async((4, 4), countdown="soon")  # wrong: type


@app.task(queue="mail")
def fine() -> None: ...


@app.task(queue=3)  # wrong: type
def wrong_queue() -> None: ...


@app.task(colour="red")  # wrong: no such option
def wrong_option() -> None: ...


app.task("not a function")  # wrong: type
