"""Wrong calls of ``map``; each line marked ``# wrong`` must be rejected, no other."""

from tests.typing.tasks import add, fetch, greet, matrix, nothing, rank, ship

add.map([(1, 2), (3, 4)])
add.map([(1, "2")])  # wrong: type
add.map([(1,)])  # wrong: one is missing
add.map([(1, 2, 3)])  # wrong: one too many
add.map([()])  # wrong: both are missing
rank.map([()])  # wrong: one is missing
nothing.map([(1,)])  # wrong: one too many
add.map([1, 2])  # wrong: no tuples
add.map((str(i), i) for i in range(3))  # wrong: type
greet.map([(1,)])  # wrong: type
greet.map([("Ann", "Hi", "there")])  # wrong: one too many
rank.map([(1,)])  # wrong: type
fetch.map(["http://localhost"])  # wrong: no tuples
add.options(queue="low").map([("1", 2)])  # wrong: type
add.options(queue="low").map([(1,)])  # wrong: one is missing
ship.map([(1, "Ann", "Elm St", "Ulm")])  # wrong: one is missing
ship.map([(1, "Ann", "Elm St", "Ulm", "heavy")])  # wrong: type
ship.map([(1, "Ann", "Elm St", "Ulm", 0.5, "fast")])  # wrong: type
ship.map([(1, "Ann", "Elm St", "Ulm", 0.5, True, None)])  # wrong: one too many
matrix.map([(1, 2, 3, 4, 5, 6, 7, 8)])  # wrong: type
