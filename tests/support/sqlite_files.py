"""What tests look at in SQLite files, each time through a connection of its own."""

import sqlite3
from pathlib import Path

__all__ = ["dump", "query", "tables", "url"]


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def query(path: Path, text: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(text).fetchall()
    finally:
        connection.close()


def dump(path: Path) -> str:
    """Everything in the file, as SQL."""
    connection = sqlite3.connect(path)
    try:
        return "\n".join(connection.iterdump())
    finally:
        connection.close()


def tables(path: Path) -> set[object]:
    return {row[0] for row in query(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}
