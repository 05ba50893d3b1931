"""The doctor on an application: whether its connector is patched, and which modes are set."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from procrastinate.connector import BaseConnector
from procrastinate.exceptions import LoadFromPathError
from procrastinate.testing import InMemoryConnector
from procrastinate.utils import load_from_path

from ...layer import layer
from .findings import Finding


def application(path: str) -> Iterator[Finding]:
    """What there is to say of the app at *path*. Without one, how to name it."""
    if not path:
        text = "not looked at: --app shop.app, or PROCRASTINATE_APP, shows those of your app"
        yield Finding("modes", "skipped", text)
        return
    try:
        connector = _connector(path)
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - importing a program may raise anything
        # The text of an error may hold a password; that of a failed import holds names.
        is_import = isinstance(exc, (ImportError, LoadFromPathError))
        reason = f"{type(exc).__name__}: {exc}" if is_import else type(exc).__name__
        fix = f"see what `python -c 'import {path.rpartition('.')[0]}'` says"
        yield Finding("app", "problem", f"{path} cannot be imported: {reason}", fix)
        return
    if not isinstance(connector, BaseConnector):
        fix = "name a module and the app in it, such as shop.app"
        yield Finding("app", "problem", f"{path} is no procrastinate.App", fix)
        return
    yield _app(connector, f"{path}: {type(connector).__name__}")
    yield from _modes(connector)


def _connector(path: str) -> object:
    """The connector of the app at *path*, imported as by a program that is started in this directory."""
    sys.path.insert(0, str(Path.cwd()))
    with contextlib.redirect_stdout(sys.stderr):  # The findings may be read by a machine.
        if "DJANGO_SETTINGS_MODULE" in os.environ:
            importlib.import_module("django").setup()
        return getattr(load_from_path(path), "connector", None)


def _app(connector: BaseConnector, name: str) -> Finding:
    if isinstance(connector, InMemoryConnector):
        return Finding("app", "hint", f"{name} keeps jobs in memory", "use it in unit tests alone")
    if layer.is_on(connector):
        by = "patch()" if connector in layer.patched else "install()"
        return Finding("app", "ok", f"{name}, patched by {by}")
    if connector in layer.own_connectors:
        return Finding("app", "ok", f"{name}, which needs no patch")
    fix = "call procrastinate_extconn.install() in the module that makes the app, so that it holds in every program"
    return Finding("app", "hint", f"{name}, which is not patched", fix)


def _modes(connector: BaseConnector) -> Iterator[Finding]:
    if layer.is_on(connector) or connector in layer.own_connectors:
        outside = layer.mode_of(connector) or layer.outside_transaction
        without = layer.without_connection_of(connector)
        text = f'outside_transaction="{outside}", without_connection="{without}"'
        yield Finding("modes", "ok", text)
