"""Jobs and values that somebody's quoting, parsing or rounding gets wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from procrastinate.jobs import Job

from .caller import new_job

LONG = "<" + "long é " * 20_000 + ">"
"""Longer than 64 kB, with its end in sight."""

TEXTS = (
    "quotes ' \" ` and '' doubled",
    "backslashes \\ \\\\ \\n \\' \\\" \\x41 \\u0041 \\101 \\",
    "placeholders %s %% %(x)s %(jobs)s :name ::text $1 ? {} {0} ${x} @x",
    "braces {a,b} [1,2] (c,d) , ;",
    "lines\nand\ttabs\r\nand\rreturns\n",
    "E'x' $$ $tag$ -- /* */ U&'\\0041'",
    "naïve 日本語 🦄 👩\u200d👩\u200d👧 \u200b\u200f \ufeff \x7f \U0010ffff",
    "composed \u00e9 and combined e\u0301, \u212b and \u00c5, \ufb01 and fi",
    "case ß ẞ \u0130 \u0131 \u017f Σς ǅ UPPER lower",
    "  edges of spaces  ",
    "\t\n edges of others \u00a0\u3000\n",
    "controls " + "".join(map(chr, range(1, 32))),
    " ",
    "",
    "NULL",
    "null",
    "None",
    "true",
    "0123",
    "1e5",
    "-0",
    "NaN",
    "{}",
    "[]",
    '"quoted"',
    "'quoted'",
    "2031-12-31T23:59:59Z",
    "550E8400-E29B-41D4-A716-446655440000",
    "{NULL,null}",
    "\\N",
    "&lt;b&gt; %20 + =?utf-8?q?x?=",
)
"""Texts of every kind that is known to go wrong; PostgreSQL stores neither NUL nor lone surrogates."""

BIGINT = 2**63
INTEGERS = (0, 1, -1, 255, 2**31 - 1, 2**31, -(2**31), 2**53, 2**53 + 1, BIGINT - 1, -BIGINT)
FLOATS = (0.0, 0.1, 2.5, 1.0, 1e16, 1e22, 123456789.12345679, 5e-324, 1.7976931348623157e308)
_NEPAL = timezone(timedelta(hours=5, minutes=45))
INSTANT = datetime(2031, 12, 31, 23, 59, 59, 999999, _NEPAL)
INSTANTS = (
    INSTANT,
    datetime(2031, 7, 1, 12, 0, 0, 1, timezone.utc),
    datetime(2031, 3, 30, 1, 30, tzinfo=timezone.utc),  # where clocks change in Europe
    datetime(2031, 10, 26, 0, 30, tzinfo=timezone.utc),
    datetime(1970, 1, 1, tzinfo=timezone.utc),
    datetime(1969, 12, 31, 23, 59, 59, 999999, timezone.utc),
    datetime(2000, 2, 29, 0, 0, 0, 100, timezone(timedelta(hours=-12))),
    datetime(2999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=14))),
)

_NUMBERS = (*INTEGERS, *FLOATS, -0.0, 2**70, -(10**40), True, False, None)


def difficult_jobs() -> list[Job]:
    """One job for each difficulty, more than a hundred in all, no two of which wait for the same lock."""
    # A queue's name is part of a channel's, which has less than 64 bytes.
    jobs = [
        new_job({"text": text, text: [text]}, lock=text, queueing_lock=text, queue=text[:8])
        for text in TEXTS
    ]
    jobs += [new_job({"number": number, "in": [number]}) for number in _NUMBERS]
    jobs += [new_job({"at": n}, scheduled_at=instant) for n, instant in enumerate(INSTANTS)]
    jobs += [new_job({"n": n}, priority=n) for n in (0, 1, -1, 2**31 - 1, -(2**31))]
    documents: list[dict[str, Any]] = [{}, {"": {}}, {"list": []}, {"nested": _nested(60)}]
    documents += [{"long": LONG}, {f"key {n}": n for n in range(300)}]
    jobs += [new_job(document) for document in documents]
    jobs += [new_job({"same": 1}) for _ in range(2)]
    return jobs + list(_random_jobs(100))


def _nested(depth: int) -> Any:
    return {"in": [_nested(depth - 1)]} if depth else 1


def _random_jobs(count: int) -> Iterator[Job]:
    """Jobs of random texts and numbers, which are the same in each run."""
    chance = random.Random("the contract")  # noqa: S311 - not for secrets

    def text() -> str:
        ranges = ((32, 127), (128, 0x2FF), (0x300, 0x36F), (0x3000, 0xD7FF), (0x1F300, 0x1FAFF))
        return "".join(
            chr(chance.randint(*chance.choice(ranges))) for _ in range(chance.randint(0, 30))
        )

    def value(depth: int) -> Any:
        if depth and chance.random() < 0.4:
            size = range(chance.randint(0, 4))
            return chance.choice(
                ([value(depth - 1) for _ in size], {text(): value(depth - 1) for _ in size})
            )
        return chance.choice(
            (text(), chance.randint(-(10**20), 10**20), chance.uniform(-1e9, 1e9), *_NUMBERS)
        )

    for n in range(count):
        yield new_job(
            {text(): value(3) for _ in range(chance.randint(0, 4))},
            queue=chance.choice(("default", text()[:8])),
            task_name=f"task {text()}",
            lock=chance.choice((None, text())),
            queueing_lock=chance.choice((None, f"{n} {text()}")),
            priority=chance.randint(-(2**31), 2**31 - 1),
            scheduled_at=chance.choice(
                (None, INSTANT + timedelta(microseconds=chance.randint(0, 10**15)))
            ),
        )


def difficult_values() -> Iterator[dict[str, Any]]:
    """One of each type that a plugin is asked to bind, until each difficulty has had its turn."""
    columns: dict[str, tuple[Any, ...]] = {
        "boolean": (None, True, False),
        "bigint": (None, *INTEGERS),
        "float": (None, *FLOATS),
        "text": (None, *TEXTS, LONG),
        "timestamptz": (None, *INSTANTS),
    }
    for n in range(max(map(len, columns.values()))):
        yield {name: values[n % len(values)] for name, values in columns.items()}
