"""Jobs and values as wild as PostgreSQL stores them, for hypothesis."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from procrastinate.jobs import Job

from .caller import new_job

HOSTILE = (
    "quotes ' \" ` and '' doubled",
    "backslashes \\ \\\\ \\n \\' \\\"",
    "placeholders %s %% %(x)s %(jobs)s :name ::text $1 ? {} {0}",
    "braces {a,b} [1,2] (c,d) , ;",
    "lines\nand\ttabs\r\n",
    "E'x' $$ $tag$ -- /* */",
    "naïve 日本語 🦄 \u200f \ufeff \x7f",
    "NULL null true",
    " ",
    "",
)
"""Text that somebody's quoting gets wrong."""

# A connection for each example: few examples, each of them with much in it. The failure names the field that differs,
# so that nothing is gained from minutes of shrinking.
few: settings = settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
)

BIGINT = 2**63
_ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))

# PostgreSQL stores neither NUL nor lone surrogates.
text: st.SearchStrategy[str] = st.sampled_from(HOSTILE) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)
_YEARS = datetime(1900, 1, 1), datetime(2999, 1, 1)  # noqa: DTZ001
instants: st.SearchStrategy[datetime] = st.datetimes(*_YEARS, timezones=_ZONES)
floats: st.SearchStrategy[float] = st.floats(allow_nan=False, allow_infinity=False)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | floats | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)


def _without_conflicts(batch: list[Job]) -> list[Job]:
    by_lock = {
        n if job.queueing_lock is None else job.queueing_lock: job for n, job in enumerate(batch)
    }
    return list(by_lock.values())


jobs: st.SearchStrategy[list[Job]] = st.lists(
    st.builds(
        new_job,
        st.dictionaries(text, _json, max_size=4),
        queue=st.sampled_from(["default", "q'ueue", "ünï %s", "{a,b}"]),
        task_name=st.sampled_from(["task", "a.b:c", "%(x)s", 'q"']),
        lock=st.none() | text,
        queueing_lock=st.none() | text,
        priority=st.integers(-(2**31), 2**31 - 1),
        scheduled_at=st.none() | instants,
    ),
    min_size=1,
    max_size=6,
).map(_without_conflicts)
"""Batches in which no two jobs wait for each other's queueing lock."""

values: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "boolean": st.none() | st.booleans(),
        "bigint": st.none() | st.integers(-BIGINT, BIGINT - 1),
        "float": st.none() | floats,
        "text": st.none() | text,
        "timestamptz": st.none() | instants,
        "bigints": st.none() | st.lists(st.integers(-BIGINT, BIGINT - 1), max_size=3),
        "texts": st.none() | st.lists(text, max_size=3),
    }
)
"""One of each type that a plugin is asked to bind."""
