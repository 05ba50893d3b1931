"""The Django app: it installs the layer, as ``settings.PROCRASTINATE_EXTCONN`` says."""

# Django ships no types.
# pyright: basic

from __future__ import annotations

import functools
import importlib
from typing import Any, get_args

from django.apps import AppConfig, apps
from django.conf import settings
from django.core import checks
from django.db import connections

from procrastinate_extconn import install
from procrastinate_extconn.options import OutsideMode
from procrastinate_extconn.own_work import own_work
from procrastinate_extconn.replacing import replace
from procrastinate_extconn.sync_async import within

_PROCRASTINATE = "procrastinate.contrib.django"
_OUTBOX = "procrastinate_extconn_outbox.django"
SETTING = "PROCRASTINATE_EXTCONN"
KEYS = ("OUTSIDE_TRANSACTION", "WITHOUT_CONNECTION")


class ProcrastinateExtconnConfig(AppConfig):  # type: ignore[misc]
    """``INSTALLED_APPS = [..., "procrastinate_extconn_django"]``."""

    name = "procrastinate_extconn_django"
    verbose_name = "procrastinate-extconn"

    def ready(self) -> None:
        """Install the layer. A wrong setting is for the checks to report, and is passed over until it is right."""
        checks.register(check_setting)
        checks.register(check_databases)
        given = {} if check_setting() else getattr(settings, SETTING, {})
        install(**{key.lower(): given.get(key) for key in KEYS})
        if apps.is_installed("django.contrib.admin") and apps.is_installed(_PROCRASTINATE):
            _recognise_admin()


def _recognise_admin() -> None:
    """The actions of Procrastinate's own pages in Django's admin are its own work, those of a subclass are not."""
    admin = importlib.import_module(f"{_PROCRASTINATE}.admin")
    get_action = admin.ProcrastinateJobAdmin.get_action

    @functools.wraps(get_action)
    def marked(self: Any, action: Any) -> Any:
        found = get_action(self, action)
        if found is None or found[0].__module__ != admin.__name__:
            return found
        return within(own_work, found[0]), *found[1:]

    replace(admin.ProcrastinateJobAdmin, "get_action", marked, __name__)


def check_setting(**kwargs: Any) -> list[checks.CheckMessage]:
    """``PROCRASTINATE_EXTCONN`` is a dict, with the keys and values that there are."""
    given = getattr(settings, SETTING, {})
    if not isinstance(given, dict):
        return [_error("E001", f"{SETTING} should be a dict, got {type(given).__name__}.")]
    errors = [_error("E002", f"{SETTING} has no key {key!r}.") for key in given if key not in KEYS]
    for key in KEYS:
        if key in given and given[key] not in get_args(OutsideMode):
            errors.append(_error("E003", f"{SETTING}[{key!r}] has no value {given[key]!r}.", key))
    return errors


def _error(number: str, text: str, key: str = KEYS[0]) -> checks.CheckMessage:
    modes = " or ".join(f'"{mode}"' for mode in get_args(OutsideMode))
    return checks.Error(
        text, hint=f'{SETTING} = {{"{key}": {modes}}}', id=f"procrastinate_extconn.{number}"
    )


def check_databases(**kwargs: Any) -> list[checks.CheckMessage]:
    """At least one database is PostgreSQL, or no connection of Django's could take a job, but for an outbox."""
    if apps.is_installed(_OUTBOX) or any(
        connection.vendor == "postgresql" for connection in connections.all()
    ):
        return []
    return [
        checks.Warning(
            "No database in DATABASES is on a PostgreSQL backend, so no connection of Django's can take a job.",
            hint="Use django.db.backends.postgresql where Procrastinate's schema is. If your rows are in another "
            f'database, see "Rows in another database" in the documentation, and install the app {_OUTBOX}.',
            id="procrastinate_extconn.W001",
        )
    ]
