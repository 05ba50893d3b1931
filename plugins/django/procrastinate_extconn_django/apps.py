"""The Django app: it installs the layer, as ``settings.PROCRASTINATE_EXTCONN`` says."""

# Django ships no types.
# pyright: basic

from __future__ import annotations

from typing import Any, get_args

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.db import connections

from procrastinate_extconn import install
from procrastinate_extconn.options import OutsideMode

SETTING = "PROCRASTINATE_EXTCONN"
KEY = "OUTSIDE_TRANSACTION"


class ProcrastinateExtconnConfig(AppConfig):  # type: ignore[misc]
    """``INSTALLED_APPS = [..., "procrastinate_extconn_django"]``."""

    name = "procrastinate_extconn_django"
    verbose_name = "procrastinate-extconn"

    def ready(self) -> None:
        """Install the layer. A wrong setting is for the checks to report, and is passed over until it is right."""
        checks.register(check_setting)
        checks.register(check_databases)
        given = {} if check_setting() else getattr(settings, SETTING, {})
        install(outside_transaction=given.get(KEY))


def check_setting(**kwargs: Any) -> list[checks.CheckMessage]:
    """``PROCRASTINATE_EXTCONN`` is a dict, with the keys and values that there are."""
    given = getattr(settings, SETTING, {})
    if not isinstance(given, dict):
        return [_error("E001", f"{SETTING} should be a dict, got {type(given).__name__}.")]
    errors = [_error("E002", f"{SETTING} has no key {key!r}.") for key in given if key != KEY]
    if KEY in given and given[KEY] not in get_args(OutsideMode):
        errors.append(_error("E003", f"{SETTING}[{KEY!r}] has no value {given[KEY]!r}."))
    return errors


def _error(number: str, text: str) -> checks.CheckMessage:
    modes = " or ".join(f'"{mode}"' for mode in get_args(OutsideMode))
    return checks.Error(
        text, hint=f'{SETTING} = {{"{KEY}": {modes}}}', id=f"procrastinate_extconn.{number}"
    )


def check_databases(**kwargs: Any) -> list[checks.CheckMessage]:
    """At least one database is PostgreSQL, or no connection of Django's could ever take a job."""
    if any(connection.vendor == "postgresql" for connection in connections.all()):
        return []
    return [
        checks.Warning(
            "No database in DATABASES is on a PostgreSQL backend, so no connection of Django's can take a job.",
            hint="Use django.db.backends.postgresql where Procrastinate's schema is.",
            id="procrastinate_extconn.W001",
        )
    ]
