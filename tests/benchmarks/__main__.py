"""Measure it all, print the table, and write what "How fast is it" in the documentation shows.

Run it as ``tox -e benchmarks``, or as ``python tests/benchmarks`` where all drivers and peers are installed. It asserts
nothing: a time says as much about the machine as about the code, and `tests/test_cost.py` guards what does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import measurements
import peers
import plots
import psycopg
from procrastinate.schema import SchemaManager
from results import Results

from procrastinate_extconn.temporary_server import TemporaryServer
from procrastinate_extconn.testing.server import VARIABLE, database_dsn

DATABASE = "extconn_benchmarks"
OUTPUT = Path(__file__).parents[2] / "docs" / "benchmarks"


def main() -> None:
    """Parse the command line, and do what the module says."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=25, help="how often each pair takes turns (default: 25)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where files go")
    parser.add_argument("only", nargs="*", help="measurements to make, and to write nothing")
    options = parser.parse_args()

    results = Results()
    with server() as dsn, database(dsn) as dsn:
        results.machine = machine(dsn)
        for name, measure in measurements.ALL.items():
            if not options.only or name in options.only:
                sys.stderr.write(f"{name} ...\n")
                peers.clear(dsn)
                measure(dsn, options.rounds, results)
    sys.stdout.write(results.table(goals=True))
    if not options.only:
        options.output.mkdir(parents=True, exist_ok=True)
        write(results, options.output)


def write(results: Results, folder: Path) -> None:
    """Write the figures, the table and the plots."""
    data = results.data()
    text = json.dumps(data, indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text(results.table(goals=False), encoding="utf-8")
    (folder / "goals.md").write_text(results.table(goals=True), encoding="utf-8")
    plots.draw(data, folder)


@contextmanager
def server() -> Iterator[str]:
    """Use the server that the tests would use. In one that is started here, nothing cleans up in between."""
    if dsn := os.environ.get(VARIABLE):
        yield dsn
    else:
        with TemporaryServer(options={"autovacuum": "off"}) as temporary:
            yield temporary.dsn()


@contextmanager
def database(server: str) -> Iterator[str]:
    """Make a database with everybody's tables, and drop it in the end."""
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE IF EXISTS {DATABASE}")
        conn.execute(f"CREATE DATABASE {DATABASE}")
        dsn = database_dsn(server, DATABASE)
        try:
            with psycopg.connect(dsn) as own:
                own.execute(SchemaManager.get_schema())
            asyncio.run(peers.create_schemas(dsn))
            yield dsn
        finally:
            conn.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


def machine(dsn: str) -> dict[str, str]:
    """What the figures were measured on, and of which versions."""
    with psycopg.connect(dsn) as conn:
        postgresql = conn.info.parameter_status("server_version") or ""
    names = ("procrastinate-extconn", "procrastinate", *measurements.VERSIONS_OF)
    return {
        "processor": f"{os.cpu_count()} x {platform.machine()}",
        "Python": platform.python_version(),
        "PostgreSQL": postgresql.split()[0],
        **{name: version(name) for name in names},
    }


main()
