"""Wrong calls of ``delay`` and of the task itself; each line marked ``# wrong`` must be rejected, no other."""

from tests.typing.tasks import add, fetch, greet, nothing, old, rank, render, send, total

add.delay(4, 4)
add.delay(4, "4")  # wrong: type
add.delay(4)  # wrong: one is missing
add.delay()  # wrong: both are missing
add.delay(4, 4, 4)  # wrong: one too many
add.delay(4, y=4, z=4)  # wrong: no such name
add.delay(x=4, y=None)  # wrong: type
greet.delay("Ann", 1)  # wrong: type
fetch.delay(b"http://localhost")  # wrong: type
rank.delay(1)  # wrong: type
rank.delay("Ann", "Bob")  # wrong: one too many
render.delay(1, True)  # wrong: keyword-only
render.delay(1)  # wrong: one is missing
send.delay("a@b.c", subject=1)  # wrong: type
old.delay("1")  # wrong: type
old.delay()  # wrong: one is missing
total.delay(1, "2")  # wrong: type
total.delay(1, scale="2")  # wrong: type
nothing.delay(1)  # wrong: one too many
add(4, "4")  # wrong: type
add(4)  # wrong: one is missing
text: str = add.delay(4, 4).get()  # wrong: an int
number: int = add.delay(4, 4)  # wrong: a handle
