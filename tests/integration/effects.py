"""A table of the user's own, beside the jobs: what has happened exactly as often as it has rows."""

import sqlite3
from contextlib import closing
from typing import Any

import psycopg

from mouso.brokers import connect
from mouso.urls import BrokerURL
from tests.integration.harness import Bench


class Effects:
    """The table ``effects``, with a job's id and a number.

    Attributes:
        insert: The statement that adds a row.
    """

    def __init__(self, bench: Bench) -> None:
        self._url = BrokerURL.parse(bench.broker_url).params.get("store", bench.broker_url)  # where there are tables
        postgres = not self._url.startswith("sqlite")
        table = f"{BrokerURL.parse(self._url).params['schema']}.effects" if postgres else "effects"
        marks = "%s, %s" if postgres else "?, ?"
        self._table = table
        self.insert = f"INSERT INTO {table} VALUES ({marks})"
        with closing(connect(self._url)) as broker:
            broker.open()
        with closing(self.connect()) as connection:
            connection.execute(f"CREATE TABLE {table} (job text, n integer)")
            connection.commit()

    def connect(self) -> Any:
        """A connection as a user would open one."""
        if self._url.startswith("sqlite"):
            return sqlite3.connect(self._url.removeprefix("sqlite:///"), timeout=10)
        return psycopg.connect(self._url.partition("?")[0])

    def rows(self) -> list[tuple[str, int]]:
        """The rows that are committed, by number."""
        with closing(self.connect()) as connection:
            return [tuple(row) for row in connection.execute(f"SELECT job, n FROM {self._table} ORDER BY n, job")]
