"""What Django calls this app."""

# Django ships no types.
# pyright: basic

from __future__ import annotations

from django.apps import AppConfig


class ProcrastinateOutboxConfig(AppConfig):  # type: ignore[misc]
    """The tables, and nothing else: `Outbox` takes Django's connections without it."""

    name = "procrastinate_extconn_outbox.django"
    label = "procrastinate_outbox"
    verbose_name = "procrastinate-extconn: outbox"
