"""The commands that look at databases: `doctor --outbox`, and `prune`."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
import pytest
from click.testing import CliRunner, Result
from procrastinate_extconn_outbox import Tables, relay
from procrastinate_extconn_outbox.cli import main
from procrastinate_extconn_outbox.findings import outbox
from procrastinate_extconn_outbox.payload import new_id
from sqlalchemy import URL, create_engine, insert, update

JOB = {"queue_name": "q", "task_name": "ship", "priority": 0, "args": {"a": "secret"}}


def write(url: URL, *rows: dict[str, Any]) -> None:
    """Write rows into the outbox."""
    engine = create_engine(url)
    with engine.begin() as conn:
        for row in rows:
            values = {"id": new_id(), "jobs": json.dumps([JOB]), **row}
            conn.execute(insert(Tables().outbox).values(values))
    engine.dispose()


def address(url: URL) -> str:
    """Write the URL with its password."""
    return url.render_as_string(hide_password=False)


def test_nothing_waits(rows_url: URL) -> None:
    """An empty outbox is well."""
    [found] = outbox(address(rows_url))
    assert (found.status, found.text) == ("ok", "0 rows wait")


def test_rows_wait_and_are_set_aside(rows_url: URL) -> None:
    """The doctor counts what waits, tells the oldest one's age, and says why rows are set aside."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    old = {"created_at": now - datetime.timedelta(hours=3, minutes=5, seconds=30)}
    write(rows_url, old, {}, {"set_aside": "its jobs are no good"})
    waiting, aside = outbox(address(rows_url))
    assert waiting.status == "hint"
    assert waiting.text.startswith("2 rows wait, the oldest for 3:05:")
    assert aside.status == "problem"
    assert aside.text == "1 row set aside, one because: its jobs are no good"
    assert "secret" not in f"{waiting}{aside}"


@pytest.mark.parametrize(
    "url", ["mysql+pymysql://me:secret@127.0.0.1:1/x", "no://secret", "secret"]
)
def test_no_answer(url: str) -> None:
    """What cannot be reached or read is told without the password."""
    [found] = outbox(url)
    assert found.status == "problem"
    assert "secret" not in str(found)


def test_the_doctor_shows_it(sqlite_url: URL) -> None:
    """The outbox is an option of the doctor's, which may be given several times."""
    from procrastinate_extconn.cli.group import cli

    options = ["--outbox", address(sqlite_url), "--outbox", address(sqlite_url)]
    result = CliRunner().invoke(cli, ["doctor", "--dsn", "host=127.0.0.1 port=1", *options])
    assert result.output.count("0 rows wait") == 2


def test_prune(rows_url: URL, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks, and ids that a killed relay has left in the inbox, are deleted when they are old."""
    (tmp_path / "pruned_shop.py").write_text(
        "import procrastinate\n"
        f"app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo={dsn!r}))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    engine = create_engine(rows_url)
    relay(
        rows_url,
        procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn)),
        wait=False,
    )
    marks = Tables().marks
    with engine.begin() as conn, psycopg.connect(dsn) as queue:
        for number in (1, 2):
            conn.execute(insert(marks).values(namespace="", job_id=number, digest="0" * 64))
            queue.execute("INSERT INTO procrastinate_outbox_inbox VALUES (%s)", [new_id()])
        old = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=8)
        conn.execute(
            update(marks).where(marks.c.job_id == 1).values(created_at=old.replace(tzinfo=None))
        )
        queue.execute(
            "UPDATE procrastinate_outbox_inbox SET forwarded_at = now() - interval '8 days' "
            "WHERE id = (SELECT min(id) FROM procrastinate_outbox_inbox)"
        )
    engine.dispose()

    def prune(*options: str) -> Result:
        return CliRunner().invoke(main, ["prune", *options])

    both = ["--from", address(rows_url), "--app", "pruned_shop.app"]
    assert (
        prune(*both, "--older-than", "9").output
        == "marks deleted: 0\nids deleted from the inbox: 0\n"
    )
    assert (
        prune(*both, "--older-than", "7").output
        == "marks deleted: 1\nids deleted from the inbox: 1\n"
    )
    assert prune("--older-than", "7").exit_code == 2
