"""The plugin takes what is its own, in every form in which people hold it, and leaves the rest."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import pluggy

from .... import hookspecs
from ....exceptions import UnsupportedConnection
from ....hookspecs import PROJECT_NAME
from ....plugins import plugins
from ....sync_async import discard, done
from ..caller import Caller, what
from ..clause import Broken, clause, must

_ABOUT_OTHERS: dict[str, dict[str, Any]] = {
    "describe_external": {},
    "execute_on_external": {"query": "SELECT 1", "args": {}},
    "connect_external": {},
    "listen_external": {"channels": []},
    "read_external_error": {},
}


class ClaimClauses:
    """Its own connections, subclasses and proxies of them, and nothing else."""

    @clause()
    async def test_leaves_others_alone(self, caller: Caller) -> None:
        """Each hook returns None for an object, or an error, that is not of its driver."""
        alone = pluggy.PluginManager(PROJECT_NAME)
        alone.add_hookspecs(hookspecs)
        alone.register(plugins().get(caller.kind.plugin))
        strangers: tuple[object, ...] = (
            object(),
            "postgresql://",
            None,
            1,
            {},
            _Duck(),
            KeyError(),
        )
        strangers += (type(caller.conn),)
        for hook, others in _ABOUT_OTHERS.items():
            call = getattr(alone.hook, hook)
            assert call.spec is not None
            for stranger in strangers:
                try:
                    result = call(**{call.spec.argnames[0]: stranger, **others})
                except Exception as exc:
                    text = f"{hook} raises for {stranger!r}, which is not of its driver"
                    raise Broken(text) from exc
                discard(result)
                must(result is None, f"{hook} takes {stranger!r}")

    @clause()
    async def test_subclasses(self, caller: Caller) -> None:
        """A connection whose class is derived from the driver's own is taken, and keeps its transaction."""
        with _derived(caller.conn) as conn:
            if conn is not None:
                await _taken(caller, conn, "a connection of a derived class")

    @clause()
    async def test_proxies(self, caller: Caller) -> None:
        """A proxy that gives the connection's class as its ``__class__``, as tracing libraries' do, is taken."""
        proxy: Any = _proxy(caller.conn, caller.conn.__class__)
        await _taken(caller, proxy, "a proxy of the connection")

    @clause()
    async def test_cursors(self, caller: Caller) -> None:
        """A cursor of the connection is refused, if the driver has such a thing."""
        cursor: Any = None
        with suppress(Exception):
            cursor = await done(caller.conn.cursor())
        if cursor is None or cursor is caller.conn:
            return
        try:
            error = await caller.error_of(caller.defer(conn=cursor))
            must(
                isinstance(error, UnsupportedConnection),
                f"for a cursor, {what(error)}, not UnsupportedConnection",
                error,
            )
        finally:
            with suppress(Exception):
                await done(cursor.close())

    @clause()
    async def test_claim_is_for_the_class(self, caller: Caller) -> None:
        """The connection is taken in each state, so that the claim can be cached: a closed one is refused, not left."""
        await caller.defer()
        await caller.rollback()
        await caller.close()
        plugins().execute.forget()
        plugins().describe.forget()
        error = await caller.error_of(caller.defer())
        must(
            not (isinstance(error, UnsupportedConnection) and "no plugin takes it" in str(error)),
            "the connection is left to other plugins once it is closed",
            error,
        )
        await caller.close()


async def _taken(caller: Caller, conn: Any, name: str) -> None:
    try:
        [job_id] = await caller.defer(conn=conn)
    except UnsupportedConnection as exc:
        raise Broken(f"{name} is refused") from exc
    must(not caller.database.sees(job_id), f"the job on {name} was committed at once")
    seen = await caller.execute("SELECT id FROM procrastinate_jobs")
    must(seen == [(job_id,)], f"{name} leads to another connection")


@contextmanager
def _derived(conn: Any) -> Generator[Any]:
    """*conn* as an instance of a derived class, or something that says that it is one; None if the class is final."""
    cls = conn.__class__
    try:
        derived = type("Derived", (cls,), {"__slots__": ()})
    except TypeError:
        yield None
        return
    try:
        conn.__class__ = derived
    except (TypeError, AttributeError):
        yield _proxy(conn, derived)
        return
    try:
        yield conn
    finally:
        conn.__class__ = cls


def _proxy(conn: Any, cls: type) -> Any:
    return (_CallableProxy if callable(conn) else _Proxy)(conn, cls)


class _Proxy:
    """Passes everything on to another object, and gives a class for its own."""

    def __init__(self, wrapped: Any, cls: type) -> None:
        object.__setattr__(self, "_wrapped", wrapped)
        object.__setattr__(self, "_class", cls)

    @property
    def __class__(self) -> Any:
        return object.__getattribute__(self, "_class")

    @__class__.setter
    def __class__(self, cls: type) -> None:
        raise TypeError

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_wrapped"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_wrapped"), name, value)


class _CallableProxy(_Proxy):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return object.__getattribute__(self, "_wrapped")(*args, **kwargs)


class _Duck:
    """Has every method that one may look for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object
