"""What a server says of itself, and what is wrong with that."""

from __future__ import annotations

import msgspec
from redis.exceptions import InvalidResponse

_OLDEST = (7, 0)
_WRITES = {"aof_last_write_status": "its append-only file", "rdb_last_bgsave_status": "its snapshot"}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """From ``INFO``.

    Attributes:
        name: ``Redis`` or ``Valkey``.
        policy: What it evicts when its memory is full: ``noeviction`` is nothing.
        durable: Whether it writes an append-only file.
        master: Whether it takes writes.
        used, limit: Bytes of memory; a limit of 0 is none.
        replicas: How many are connected.
        unwritten: What it could not write to its disk the last time, if anything.
    """

    name: str
    version: str
    policy: str
    durable: bool
    master: bool
    used: int
    limit: int
    replicas: int
    unwritten: str

    @classmethod
    def read(cls, info: bytes) -> Facts:
        """Reads a reply to ``INFO``.

        Raises:
            redis.exceptions.InvalidResponse: It is none.
        """
        if not isinstance(info, bytes) or b"_version:" not in info:
            raise InvalidResponse("what answers there is no Redis or Valkey server")
        lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
        found = {name: value.strip() for name, _, value in lines}
        valkey = "valkey_version" in found
        return cls(
            name="Valkey" if valkey else "Redis",
            version=found.get("valkey_version" if valkey else "redis_version", "0"),
            policy=found.get("maxmemory_policy", "noeviction"),
            durable=found.get("aof_enabled", "1") == "1",
            master=found.get("role", "master") == "master",
            used=int(found.get("used_memory", 0)),
            limit=int(found.get("maxmemory", 0)),
            replicas=int(found.get("connected_slaves", 0)),
            unwritten=next((what for name, what in _WRITES.items() if found.get(name, "ok") != "ok"), ""),
        )

    def refusal(self, *, evicts: bool) -> tuple[str, str]:
        """Why the server cannot hold jobs, and what to do about it; empty texts if it can.

        Args:
            evicts: Whether it may evict keys all the same.
        """
        version = tuple(int(part) for part in self.version.split(".")[:2] if part.isdecimal())
        if version < _OLDEST and version:
            return f"{self.name} {self.version} is too old", f"use {'.'.join(map(str, _OLDEST))} or newer, or Valkey"
        if self.policy != "noeviction" and not evicts:
            return (
                f"the server deletes keys when its memory is full (maxmemory-policy {self.policy}), and jobs with them",
                "set maxmemory-policy noeviction, or add ?eviction=allow to the URL if losing jobs is all right",
            )
        return "", ""

    def notices(self) -> list[str]:
        """What somebody who starts a worker should know."""
        if self.durable:
            return []
        return [
            f"this {self.name} writes no append-only file: a crash of the server loses jobs that were accepted; "
            "set appendonly yes"
        ]
