"""Wrong calls of ``adelay``; each line marked ``# wrong`` must be rejected, no other."""

from tests.typing.tasks import add, fetch, rank, render


async def main() -> None:
    await add.adelay(4, 4)
    await add.adelay(4, "4")  # wrong: type
    await add.adelay(4)  # wrong: one is missing
    await add.adelay(4, 4, 4)  # wrong: one too many
    await add.adelay(4, z=4)  # wrong: no such name
    await fetch.adelay(1)  # wrong: type
    await fetch.adelay()  # wrong: one is missing
    await rank.adelay(None)  # wrong: type
    await render.adelay("1", draft=True)  # wrong: type
    text: str = await (await add.adelay(4, 4)).aget()  # wrong: an int
    print(text)
