"""OpenTelemetry's instrumentations of the drivers show the job's INSERT, in the trace of the caller."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from holding import hold

from procrastinate_extconn.kinds import Kind, all_kinds

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)

INSTRUMENTORS = {
    "psycopg": "PsycopgInstrumentor",
    "psycopg2": "Psycopg2Instrumentor",
    "asyncpg": "AsyncPGInstrumentor",
    "aiopg": "AiopgInstrumentor",
    "sqlalchemy": "SQLAlchemyInstrumentor",
}
IS_SQLALCHEMY_2_0 = find_spec("sqlalchemy") is not None and importlib.metadata.version(
    "sqlalchemy"
).startswith("2.0.")


def instrumented_driver(kind: Kind) -> str | None:
    """Name the driver that *kind* runs on, if OpenTelemetry instruments it."""
    if kind.plugin == "django":
        return "psycopg"
    drivers = [name for name in kind.requires if name in INSTRUMENTORS and name != "sqlalchemy"]
    return drivers[0] if drivers else None


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module: a test looks at its trace alone."""
    return new_database()


class Trace:
    """A trace that is kept in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @contextlib.contextmanager
    def instrument(self, package: str) -> Iterator[None]:
        """Instrument *package*, a driver or SQLAlchemy."""
        name = f"opentelemetry.instrumentation.{package}"
        module = pytest.importorskip(name, reason=f"no instrumentation of {package} installed")
        instrumentor = getattr(module, INSTRUMENTORS[package])()
        instrumentor.instrument(tracer_provider=self.provider)
        try:
            yield
        finally:
            instrumentor.uninstrument()

    def inserts(self) -> list[ReadableSpan]:
        """Find the spans of statements that defer jobs."""
        return [
            span
            for span in self._exporter.get_finished_spans()
            if "procrastinate_defer_jobs" in str((span.attributes or {}).get("db.statement"))
        ]


def defer_in_trace(kind: Kind, dsn: str, task: Any, package: str) -> None:
    """Defer a job on a connection of *kind* that was made under instrumentation, and look for it in the trace."""
    trace = Trace()
    tracer = trace.provider.get_tracer("request")
    with (
        trace.instrument(package),
        tracer.start_as_current_span("request") as request,
        hold(kind, dsn) as external,
    ):
        external.defer(task)
        external.commit()
    [span] = trace.inserts()
    assert span.parent is not None
    assert span.parent.span_id == request.get_span_context().span_id


def kinds(one: Callable[[Kind], object]) -> pytest.MarkDecorator:
    """Run a test on the kinds for which *one* is true."""
    found = [pytest.param(kind, id=kind.id) for kind in all_kinds() if one(kind)]
    return pytest.mark.parametrize("kind", found, indirect=True)


@kinds(instrumented_driver)
def test_driver(kind: Kind, dsn: str, task: Any) -> None:
    """A job's INSERT is a span of its driver, child of the caller's span, on every kind of connection."""
    if kind.plugin == "sqlalchemy" and "asyncpg" in kind.requires and IS_SQLALCHEMY_2_0:
        pytest.skip("SQLAlchemy 2.0 runs what it has prepared, where OpenTelemetry does not look")
    if kind.plugin == "django" and importlib.import_module("django").VERSION < (5, 1):
        pytest.skip("this Django sets its own cursor factory over OpenTelemetry's")
    defer_in_trace(kind, dsn, task, str(instrumented_driver(kind)))


@pytest.mark.filterwarnings("ignore:DB-API extension cursor.connection used")  # by OpenTelemetry
@kinds(lambda kind: kind.plugin == "sqlalchemy")
def test_sqlalchemy(kind: Kind, dsn: str, task: Any) -> None:
    """A job's INSERT is a span of SQLAlchemy, child of the caller's span, on every kind of connection."""
    if not IS_SQLALCHEMY_2_0:
        pytest.skip("OpenTelemetry instruments SQLAlchemy below 2.1")
    defer_in_trace(kind, dsn, task, "sqlalchemy")
