"""What a preparation has done so far, in SQLite: one transaction a record, so never half of one."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

FILE = "state.sqlite"


class State:
    """The last record, and the digests of the documents met up to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = sqlite3.connect(folder / FILE, isolation_level=None)
        self._run("CREATE TABLE IF NOT EXISTS state (content TEXT)")
        self._run("CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def _run(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.OperationalError as error:  # a full disk, or one that fails
            raise OSError(None, str(error), str(self._folder / FILE)) from None

    def last(self) -> dict[str, Any] | None:
        """What was recorded last, if anything; what follows belongs to the next record."""
        row = self._run("SELECT content FROM state").fetchone()
        self._run("BEGIN")
        return None if row is None else json.loads(row[0])

    def record(self, content: dict[str, Any]) -> None:
        self._run("DELETE FROM state")
        self._run("INSERT INTO state VALUES (?)", (json.dumps(content),))
        self._run("COMMIT")
        self._run("BEGIN")

    def new(self, digests: np.ndarray) -> np.ndarray:
        """Whether each document (SHA-256, uint64 [n, 4]) is met for the first time, bool [n]."""
        insert = "INSERT OR IGNORE INTO seen VALUES (?)"
        return np.array([self._run(insert, k).rowcount == 1 for k in _keys(digests)], dtype=bool)

    def met(self, digests: np.ndarray) -> np.ndarray:
        """Whether each document was met before, bool [n]."""
        select = "SELECT 1 FROM seen WHERE digest = ?"
        found = [self._run(select, k).fetchone() is not None for k in _keys(digests)]
        return np.array(found, dtype=bool)

    def close(self) -> None:
        self._database.close()

    def remove(self) -> None:
        """Close, and leave no file of it."""
        self.close()
        for path in self._folder.glob(f"{FILE}*"):
            path.unlink()


def _keys(digests: np.ndarray) -> list[tuple[bytes]]:
    return [(row.tobytes()[:16],) for row in digests]
