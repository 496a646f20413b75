"""Where the SQL lives. A checkout and an installed wheel have it at the same place: beside this package."""

from pathlib import Path

SQL_ROOT = Path(__file__).resolve().parent.parent / "sql"


def statement(name: str) -> str:
    """Return the statement of sql/queries/<name>.sql. Call it at import: a missing file then stops the start."""
    return (SQL_ROOT / "queries" / f"{name}.sql").read_text("utf-8")
