"""A private PgBouncer in transaction mode before a private PostgreSQL."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psycopg

from tests.servers.postgres import PostgresServer, owned
from tests.servers.server import Server, program

_SETTINGS = """
[databases]
* = host=127.0.0.1 port={upstream} user=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 5
max_client_conn = 200
server_lifetime = 3
"""
"""The server's processes keep plans for every schema that they have met; with hundreds of them, they do little else."""


class PgBouncer(Server):
    """A pool of five connections, lent out for a transaction at a time.

    Args:
        postgres: The server behind it.
    """

    user = PostgresServer.user

    def __init__(self, postgres: PostgresServer) -> None:
        super().__init__(owned(Path(tempfile.mkdtemp(prefix="mouso-pgbouncer-"))))
        settings = _SETTINGS.format(upstream=postgres.port, port=self.port)
        owned(self.folder / "pgbouncer.ini", settings)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def command(self) -> Sequence[str]:
        return [program("pgbouncer"), os.fspath(self.folder / "pgbouncer.ini")]

    def answers(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self.url, connect_timeout=5) as client:
            return client.execute("SELECT 1").fetchone() == (1,)
        return False

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        shutil.rmtree(self.folder, ignore_errors=True)
