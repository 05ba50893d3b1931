"""The plugins that come with the core."""

from __future__ import annotations

NAMES = ("psycopg", "sqlalchemy")
"""Their modules, which are their names too."""
