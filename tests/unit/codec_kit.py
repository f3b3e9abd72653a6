"""What the tests of the codec are written with: types of every kind, and a value's way to a worker and back."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, NamedTuple, NotRequired, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pydantic

from mouso.codec import Signature
from mouso.errors import ArgumentError

LIMIT = 1 << 20
T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Flavour(enum.StrEnum):
    SWEET = "sweet"


class Point(NamedTuple):
    x: int
    y: int = 0


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


@dataclass(frozen=True)
class Item:
    name: str
    price: Decimal
    tags: set[str] = field(default_factory=set)


@dataclass
class Order:
    id: UUID
    at: datetime
    items: list[Item]
    parent: "Order | None" = None


@dataclass
class Page(Generic[T]):
    items: list[T]


class Money(msgspec.Struct, frozen=True):
    amount: Decimal
    currency: str = "EUR"


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


class User(pydantic.BaseModel):
    id: UUID
    joined: datetime
    name: str = pydantic.Field(alias="fullName")
    home: Path | None = None


class Strict(pydantic.BaseModel, strict=True, extra="forbid"):
    id: UUID
    data: bytes = b""

    @pydantic.computed_field  # type: ignore[prop-decorator]  # why: mypy knows no decorated properties
    @property
    def short(self) -> str:
        return str(self.id)[:8]


class Tags(pydantic.RootModel[list[str]]): ...


ID = UUID("0197c3a5-0000-7000-8000-000000000000")
AWARE = datetime(2030, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
NAIVE = datetime(2030, 1, 2, 3, 4, 5, 678_901)
ITEM = Item("mouse", Decimal("9.90"), {"small", "grey"})
ORDER = Order(ID, AWARE, [ITEM], Order(ID, AWARE, []))
USER = User(id=ID, joined=AWARE, fullName="Ann", home=Path("/home/ann"))


def signature(hint: Any) -> Signature:
    """Of a task with one argument and a result of a type."""

    def task(value: Any) -> Any: ...

    task.__annotations__ = {"value": hint, "return": hint}
    return Signature("shop.task", task)


def travel(function: Callable[..., Any], *args: Any, codec: str = "json", **kwargs: Any) -> Any:
    """What a worker would call the function with."""
    own = Signature("shop.task", function)
    return own.decode(own.encode(args, kwargs, codec, LIMIT), codec)


def one(hint: Any, value: Any, codec: str = "json") -> Any:
    own = signature(hint)
    args, kwargs = own.decode(own.encode((value,), {}, codec, LIMIT), codec)
    assert (len(args), kwargs) == (1, {})
    return args[0]


def arrives(hint: Any, value: Any, codec: str = "json") -> Any:
    """What arrives, or None if the value is refused by the argument's name."""
    own = signature(hint)
    try:
        payload = own.encode((value,), {}, codec, LIMIT)
    except ArgumentError as error:
        if "argument 'value'" not in str(error):
            raise
        return None
    return own.decode(payload, codec)[0][0]


def nested(depth: int, *, wrap: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value
