"""The commands that work on databases: ``relay`` and ``prune``."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import click
import procrastinate
from procrastinate.exceptions import ConnectorException, ProcrastinateException
from sqlalchemy.exc import SQLAlchemyError

from . import forwarding
from .lending import Lender
from .names import OUTBOX
from .queues import QUEUE, pool_of
from .relaying import relay as run_relay
from .source import delete_marks

C = TypeVar("C", bound=Callable[..., None])


def _source(*, required: bool) -> Callable[[C], C]:
    return click.option(
        "--from",
        "source",
        metavar="URL",
        required=required,
        envvar="PROCRASTINATE_EXTCONN_OUTBOX",
        show_envvar=True,
        help="SQLAlchemy's URL of your rows' database, the primary.",
    )


def _app(*, required: bool) -> Callable[[C], C]:
    return click.option(
        "--app",
        "path",
        metavar="MODULE.APP",
        required=required,
        envvar="PROCRASTINATE_APP",
        show_envvar=True,
        help="Procrastinate's app.",
    )


@click.command()
@_source(required=True)
@_app(required=True)
@click.option("--table", default=OUTBOX, show_default=True, help="The outbox's name.")
@click.option("--no-wait", is_flag=True, help="End when the outbox is empty.")
def relay(source: str, path: str, table: str, no_wait: bool) -> None:
    """Forward the rows of an outbox to the queue, each exactly once, until SIGTERM."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        run_relay(source, _load(path), table=table, wait=not no_wait)
    except (ConnectorException, ValueError) as exc:
        raise click.ClickException(str(exc)) from exc
    except SQLAlchemyError as exc:
        # Of a URL that cannot be read, its text may hold the password.
        raise click.ClickException(
            f"--from is no URL that can be used: {type(exc).__name__}"
        ) from exc


@click.command()
@_source(required=False)
@_app(required=False)
@click.option(
    "--older-than",
    "days",
    metavar="DAYS",
    type=click.IntRange(min=1),
    required=True,
    help="Longer than any job may still be run again, or a backup be restored.",
)
def prune(source: str | None, path: str | None, days: int) -> None:
    """Delete old marks of once(), and what killed relays have left in the inbox.

    With --from the marks, with --app the inbox.
    """
    if source is None and path is None:
        raise click.UsageError("give --from, for the marks, or --app, for the inbox, or both")
    try:
        if source is not None:
            before = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=days)
            count = delete_marks(source, before.replace(tzinfo=None))
            click.echo(f"marks deleted: {count}")
        if path is not None:
            count = asyncio.run(_forget_old(_load(path), days))
            click.echo(f"ids deleted from the inbox: {count}")
    except ConnectorException as exc:
        raise click.ClickException(str(exc)) from exc
    except SQLAlchemyError as exc:
        raise click.ClickException(f"the database of --from: {type(exc).__name__}") from exc


def _load(path: str) -> procrastinate.App:
    try:
        return procrastinate.App.from_path(path)
    except (ProcrastinateException, ImportError) as exc:
        raise click.BadParameter(f"{type(exc).__name__}: {exc}", param_hint="--app") from exc


async def _forget_old(app: procrastinate.App, days: int) -> int:
    async with pool_of(app) as pool:
        lender = Lender(pool, QUEUE)
        try:
            async with lender.transaction() as queue:
                return await forwarding.forget_old(queue, days)
        finally:
            lender.close()


COMMANDS: list[Any] = [relay, prune]
