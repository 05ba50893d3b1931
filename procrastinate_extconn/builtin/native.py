"""How the connectors of Procrastinate write a value."""

from __future__ import annotations


def as_text(value: object) -> str | None:
    """*value* as they store it in a column of text, or None if they do not, or only as PostgreSQL's text of bytes."""
    from psycopg import ProgrammingError
    from psycopg.adapt import PyFormat, Transformer

    if isinstance(value, (bytes, bytearray, memoryview)):
        return None
    try:
        dumped = Transformer().get_dumper(value, PyFormat.TEXT).dump(value)
    except ProgrammingError:
        return None
    return None if dumped is None else bytes(dumped).decode()
