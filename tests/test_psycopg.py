"""What only psycopg has: factories, prepared statements, pipelines, adapters of the application."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from holding import External, Watch, hold, run_python
from procrastinate.manager import JobManager
from psycopg import rows
from psycopg.adapt import Loader
from psycopg.types.string import StrBinaryDumper

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.kinds import all_kinds, done

PAYLOAD = {"text": "100% %s $1 :name", "big": 2**70}


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module: each test looks at its own jobs."""
    return new_database()


@pytest.fixture(
    params=[kind for kind in all_kinds() if kind.id in ("psycopg", "psycopg-async")],
    ids=lambda kind: kind.id,
)
def external(request: pytest.FixtureRequest, dsn: str) -> Iterator[External]:
    """A psycopg connection, sync and async."""
    with hold(request.param, dsn) as external:
        yield external


def defer_and_list(external: External, task: Any) -> None:
    """Defer a job on the connection, and read it back there."""
    job_id = external.defer(task, **PAYLOAD)
    (job,) = external.call(JobManager(ExternalConnector(external.conn)), "list_jobs", id=job_id)
    assert (job.id, job.task_kwargs) == (job_id, PAYLOAD)


def sync_or_async(external: External, name: str) -> Any:
    """Psycopg's class of that name, sync or async as the connection is."""
    name = f"Async{name}" if external.kind.is_async else name
    if not hasattr(psycopg, name):
        pytest.skip(f"this psycopg has no {name}")
    return getattr(psycopg, name)


def nonsense(cursor: Any) -> Any:
    """A row factory that no row survives."""
    return lambda values: 1 / 0


@pytest.mark.parametrize(
    "row_factory",
    [
        rows.tuple_row,
        rows.dict_row,
        rows.namedtuple_row,
        rows.class_row(complex),
        rows.kwargs_row(collections.Counter),
        nonsense,
    ],
    ids=["tuple", "dict", "namedtuple", "class", "kwargs", "nonsense"],
)
def test_any_row_factory(external: External, task: Any, row_factory: Any) -> None:
    """With every row factory a job is deferred and read back, and the factory stays."""
    external.conn.row_factory = row_factory
    defer_and_list(external, task)
    assert external.conn.row_factory is row_factory


@pytest.mark.parametrize("prepare_threshold", [0, 1, 5, None])
@pytest.mark.parametrize("cursor", ["Cursor", "ClientCursor", "RawCursor"])
def test_any_cursor_factory_and_prepare_threshold(
    external: External, task: Any, cursor: str, prepare_threshold: int | None
) -> None:
    """However a connection binds and prepares, jobs are deferred and read back, time after time."""
    factory = sync_or_async(external, cursor)
    external.conn.cursor_factory = factory
    external.conn.prepare_threshold = prepare_threshold
    for _ in range(7):
        defer_and_list(external, task)
    assert external.conn.cursor_factory is factory
    assert external.conn.prepare_threshold == prepare_threshold


def test_a_persons_cursor_sees_the_statement(external: External, task: Any) -> None:
    """A cursor class that traces statements, as instrumentation sets one, sees ours."""
    seen = []

    class Tracing(sync_or_async(external, "Cursor")):  # type: ignore[misc]
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(query)
            return super().execute(query, *args, **kwargs)

    external.conn.cursor_factory = Tracing
    external.defer(task)
    assert "procrastinate_defer_jobs" in str(seen)


class Bytes(Loader):
    """Loads anything as bytes."""

    def load(self, data: Any) -> bytes:
        return bytes(data)


def test_a_persons_loaders_are_not_ours(external: External, task: Any) -> None:
    """With other loaders for bigint, text or JSON, we read each value as it is, and the loaders stay."""
    types = ("int8", "int4", "text", "varchar", "json", "jsonb", "timestamptz")
    for name in types:
        external.conn.adapters.register_loader(name, Bytes)
    defer_and_list(external, task)
    (row,) = external.run(lambda: fetch(external.conn, "SELECT 1::int8, '{}'::jsonb"))
    assert row == (b"1", b"{}")


async def _fetch_async(conn: Any, query: str) -> Any:
    return await (await conn.execute(query)).fetchall()


def fetch(conn: Any, query: str) -> Any:
    """The rows of a query, sync or async as the connection is."""
    if isinstance(conn, psycopg.AsyncConnection):
        return _fetch_async(conn, query)
    return conn.execute(query).fetchall()


def test_a_persons_dumpers_do_no_harm(external: External, task: Any) -> None:
    """Text that a connection sends in binary is text all the same."""
    external.conn.adapters.register_dumper(str, StrBinaryDumper)
    defer_and_list(external, task)


def test_what_a_process_registers_is_not_ours(dsn: str) -> None:
    """Dumpers and loaders that a person registers for the whole process neither reach us nor break us."""
    program = """
        import psycopg, procrastinate
        import procrastinate_extconn as extconn
        from procrastinate.manager import JobManager
        from psycopg.adapt import Dumper, Loader

        class Loud(Loader):
            def load(self, data):
                return b"<" + bytes(data) + b">"

        class Shout(Dumper):
            def dump(self, value):
                return b"!" + str(value).encode()

        for name in ("int8", "int4", "text", "varchar", "json", "jsonb", "timestamptz", "bool"):
            psycopg.adapters.register_loader(name, Loud)
        for cls in (str, int, bool):
            psycopg.adapters.register_dumper(cls, Shout)
        with psycopg.connect(DSN) as conn:
            connector = extconn.ExternalConnector(conn)
            app = procrastinate.App(connector=connector)
            job_id = app.configure_task("ship", lock="bay").defer(n=1)
            job, = JobManager(connector).list_jobs(id=job_id, lock="bay")
            print(type(job_id).__name__, job.id == job_id, job.task_name, job.lock, job.task_kwargs)
    """
    assert run_python(program, DSN=dsn) == "int True ship bay {'n': 1}\n"


# -- pipelines --------------------------------------------------------------------------------------------------------


def in_pipeline(external: External, body: Callable[[], Any]) -> Any:
    """Run *body* inside a pipeline on the connection."""

    async def run_async() -> Any:
        async with external.conn.pipeline():
            return await done(body())

    def run() -> Any:
        with external.conn.pipeline():
            return body()

    return external.run(run_async if external.kind.is_async else run)


def test_a_job_is_deferred_in_a_pipeline(external: External, task: Any, watch: Watch) -> None:
    """In a pipeline, behind statements that are on their way, the job's id is known at once."""
    external.conn.row_factory = nonsense
    deferrer = task.configure(connection=external.conn)

    async def body_async() -> list[int]:
        await external.conn.execute("SELECT 'on its way'")
        first = await deferrer.defer_async(**PAYLOAD)
        return [first, *await deferrer.batch_defer_async(PAYLOAD, PAYLOAD)]

    def body() -> list[int]:
        external.conn.execute("SELECT 'on its way'")
        return [deferrer.defer(**PAYLOAD), *deferrer.batch_defer(PAYLOAD, PAYLOAD)]

    ids = in_pipeline(external, body_async if external.kind.is_async else body)
    external.commit()
    assert [watch.job(job_id)["args"] for job_id in ids] == [PAYLOAD] * 3


# -- transactions -----------------------------------------------------------------------------------------------------


def test_a_connection_opens_its_transaction_with_the_job(external: External, task: Any) -> None:
    """An idle connection is in a transaction once a job is deferred, as with any statement."""
    assert extconn.describe(external.conn).state == "idle"
    external.defer(task)
    assert extconn.describe(external.conn).state == "in_transaction"


def test_autocommit_is_warned_of(dsn: str, task: Any) -> None:
    """Where each statement commits by itself, deferring warns at the line that did it, and says what to do."""
    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        pytest.warns(extconn.exceptions.OutsideTransactionWarning, match="`with conn.tr") as caught,
    ):
        task.configure(connection=conn).defer()
    assert caught[0].filename == __file__


def test_autocommit_is_an_error_where_one_wants_it(dsn: str, task: Any, watch: Watch) -> None:
    """In mode ``"error"`` nothing is sent."""
    before = watch.jobs()
    extconn.install(outside_transaction="error")
    with psycopg.connect(dsn, autocommit=True) as conn, pytest.raises(extconn.OutsideTransaction):
        task.configure(connection=conn).defer()
    assert watch.jobs() == before


def test_a_transaction_block_under_autocommit_is_a_transaction(
    dsn: str, task: Any, watch: Watch
) -> None:
    """Inside ``conn.transaction()`` a connection with autocommit is in a transaction, which takes the job along."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        with conn.transaction():
            kept = task.configure(connection=conn).defer()
            assert watch.job(kept) is None
        with conn.transaction(force_rollback=True):
            dropped = task.configure(connection=conn).defer()
    assert watch.job(kept)
    assert watch.job(dropped) is None


def test_a_nested_block_takes_its_job_with_it(dsn: str, task: Any, watch: Watch) -> None:
    """What was deferred inside a nested block is gone when that block rolls back; the rest stays."""
    with psycopg.connect(dsn) as conn:
        kept = task.configure(connection=conn).defer()
        with conn.transaction(force_rollback=True):
            dropped = task.configure(connection=conn).defer()
    assert watch.job(kept)
    assert watch.job(dropped) is None


def test_a_server_side_cursor_goes_on(dsn: str, task: Any) -> None:
    """A job can be deferred for each row of a server-side cursor."""
    with psycopg.connect(dsn) as conn, conn.cursor("numbers") as numbers:
        numbers.itersize = 2
        numbers.execute("SELECT * FROM generate_series(1, 5)")
        ids = [task.configure(connection=conn).defer(n=n) for (n,) in numbers]
    assert len(set(ids)) == 5


# -- what is a connection ---------------------------------------------------------------------------------------------


def test_a_subclass_is_a_connection(dsn: str, task: Any, watch: Watch) -> None:
    """A person's subclass of `psycopg.Connection` is taken."""

    class Mine(psycopg.Connection[Any]):
        pass

    with Mine.connect(dsn) as conn:
        job_id = task.configure(connection=conn).defer()
    assert watch.job(job_id)


def test_a_subclass_with_a_cursor_of_its_own_is_a_connection(
    dsn: str, task: Any, watch: Watch
) -> None:
    """An own `cursor()` may take no arguments."""

    class Mine(psycopg.Connection[Any]):
        def cursor(self) -> Any:  # type: ignore[override]
            return super().cursor()

    with Mine.connect(dsn, row_factory=psycopg.rows.dict_row) as conn:
        job_id = task.configure(connection=conn).defer()
        assert conn.cursor().row_factory is psycopg.rows.dict_row
    assert watch.job(job_id)


def test_a_wrapt_proxy_is_a_connection(dsn: str, task: Any, watch: Watch) -> None:
    """A connection inside the proxy of a tracing library is taken."""
    wrapt = pytest.importorskip("wrapt")
    with psycopg.connect(dsn) as conn:
        job_id = task.configure(connection=wrapt.ObjectProxy(conn)).defer()
    assert watch.job(job_id)


def test_a_pool_is_refused_with_the_line_that_helps(task: Any) -> None:
    """A pool is no connection: the error shows how to get one from it."""
    pool = pytest.importorskip("psycopg_pool").ConnectionPool(open=False)
    with pytest.raises(
        extconn.UnsupportedConnection, match=r"`with pool\.connection\(\) as conn: \.\.\.`"
    ):
        task.configure(connection=pool).defer()


async def test_an_async_pool_is_refused_with_the_line_that_helps(task: Any) -> None:
    """An async pool neither."""
    pool = pytest.importorskip("psycopg_pool").AsyncConnectionPool(open=False)
    with pytest.raises(extconn.UnsupportedConnection, match="`async with pool"):
        await task.configure(connection=pool).defer_async()


def test_a_cursor_is_refused_with_the_line_that_helps(dsn: str, task: Any) -> None:
    """A cursor is no connection: the error names its connection."""
    with psycopg.connect(dsn) as conn, conn.cursor() as cursor:
        with pytest.raises(extconn.UnsupportedConnection, match=r"`cursor\.connection`"):
            task.configure(connection=cursor).defer()
        assert task.configure(connection=cursor.connection).defer()


def test_a_transaction_is_refused_with_the_line_that_helps(dsn: str, task: Any) -> None:
    """Neither is what `transaction()` yields: the error names its connection."""
    with psycopg.connect(dsn) as conn, conn.transaction() as transaction:
        with pytest.raises(extconn.UnsupportedConnection, match=r"`transaction\.connection`"):
            task.configure(connection=transaction).defer()
        assert task.configure(connection=transaction.connection).defer()


def test_any_client_encoding(dsn: str, task: Any, watch: Watch) -> None:
    """Arguments that the connection's own encoding lacks are deferred all the same."""
    with psycopg.connect(dsn, client_encoding="latin1") as conn:
        job_id = task.configure(connection=conn, lock="é").defer(text="漢 é")
    job = watch.job(job_id)
    assert (job["args"], job["lock"]) == ({"text": "漢 é"}, "é")
