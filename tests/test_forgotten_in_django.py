"""Procrastinate's connector for Django joins a transaction of its own alias, and a call outside of one is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

pytest.importorskip("procrastinate_extconn_django")

SETTINGS = """
SECRET_KEY = "for a test"
USE_TZ = True
ROOT_URLCONF = __name__
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "procrastinate.contrib.django",
    "procrastinate_extconn_django",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {"default": DATABASE, "other": DATABASE}
ALLOWED_HOSTS = ["testserver"]
PROCRASTINATE_EXTCONN = {"WITHOUT_CONNECTION": MODE}


def __getattr__(name):
    if name != "urlpatterns":
        raise AttributeError(name)
    from django.contrib import admin
    from django.urls import path

    return [path("admin/", admin.site.urls)]
"""

TASKS = """
from procrastinate.contrib.django import app


@app.task(name="fine")
def fine():
    pass


@app.task(name="forgetful")
def forgetful():
    fine.defer()
"""

BEFORE = """
import asyncio, warnings
import django
django.setup()
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction
from django.test import Client
from procrastinate.contrib.django import app
from procrastinate.contrib.django.models import ProcrastinateJob
import procrastinate_extconn as extconn

task = app.configure_task("fine")

def attempt(call):
    try:
        return call() > 0
    except extconn.OutsideTransaction as exc:
        return str(exc)

def statuses():
    return dict(ProcrastinateJob.objects.order_by("id").values_list("id", "status"))
"""

Run = Callable[..., str]


def make_project(folder: Path, dsn: str) -> Run:
    """Make a project with Django's admin on a database, and give what runs a command in it."""
    address = conninfo_to_dict(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": address["dbname"],
        "HOST": address.get("host", ""),
        "PORT": str(address.get("port", "")),
        "USER": address.get("user", ""),
        "PASSWORD": address.get("password", ""),
    }
    (folder / "shop").mkdir()
    (folder / "shop/__init__.py").touch()
    (folder / "shop/tasks.py").write_text(TASKS)

    def run(*command: str, mode: str = "error") -> str:
        given = f"DATABASE = {database!r}\nMODE = {mode!r}\n"
        (folder / "project.py").write_text(given + SETTINGS)
        environment = {"PYTHONPATH": str(folder), "DJANGO_SETTINGS_MODULE": "project"}
        finished = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, **environment},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout + finished.stderr

    return run


@pytest.fixture(scope="module")
def migrated(databases: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name a database where Django has made the tables of the project."""
    with databases.create("template0") as name:
        project = make_project(tmp_path_factory.mktemp("migrated"), databases.dsn(name))
        project("-m", "django", "migrate", "--verbosity=0")
        yield name


@pytest.fixture
def project(tmp_path: Path, databases: Any, migrated: str) -> Iterator[Run]:
    """Run a command in a project of this test's own."""
    with databases.create(migrated) as name:
        yield make_project(tmp_path, databases.dsn(name))


def test_a_transaction_of_its_own_alias_passes(project: Run) -> None:
    """Inside `atomic()` a call passes, sync or async; outside, and in another alias's, it is refused."""
    program = """
with transaction.atomic():
    print(attempt(task.defer), attempt(async_to_sync(task.defer_async)))
    transaction.set_rollback(True)
print(statuses())
refusals = [attempt(task.defer), asyncio.run(sync_to_async(attempt)(task.defer))]
async def main():
    try:
        return await task.defer_async()
    except extconn.OutsideTransaction as exc:
        return str(exc)
refusals.append(asyncio.run(main()))
with transaction.atomic(using="other"):
    refusals.append(attempt(task.defer))
with transaction.atomic():
    transaction.on_commit(lambda: refusals.append(attempt(task.defer)))
print(len(set(refusals)), refusals[0])
with transaction.atomic():
    @transaction.on_commit
    def hook():
        with extconn.standalone():
            print(attempt(task.defer))
with extconn.standalone():
    print(attempt(task.defer))
print(len(statuses()))
"""
    passed, nothing, refused, *rest = project("-c", BEFORE + program).splitlines()
    assert (passed, nothing) == ("True True", "{}")
    assert refused.startswith("1 this call has no connection, so DjangoConnector would commit")
    for advice in "`with transaction.atomic(", "standalone()", "on_commit":
        assert advice in refused
    assert rest == ["True", "True", "2"]


def test_a_transaction_that_has_failed(project: Run) -> None:
    """In a block that can only be rolled back Django says so itself, for it is the block that the call belongs to."""
    program = """
with transaction.atomic():
    transaction.set_rollback(True)
    try:
        task.defer()
    except transaction.TransactionManagementError as exc:
        print("rolled back" in str(exc) or "until the end of the 'atomic' block" in str(exc))
"""
    assert project("-c", BEFORE + program) == "True\n"


def test_a_warning(project: Run) -> None:
    """With `"warn"` such a call warns once, sync or async, and the job is there."""
    program = """
async def main():
    return await task.defer_async()
for call in task.defer, lambda: asyncio.run(main()):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        print(attempt(call), [one.category.__name__ for one in caught])
"""
    expected = "True ['OutsideTransactionWarning']\n" * 2
    assert project("-c", BEFORE + program, mode="warn") == expected


@pytest.mark.timeout(300)  # eight processes that import Django
def test_the_admin_and_the_command(project: Run) -> None:
    """Procrastinate's actions in Django's admin, and its command, are never refused; a task of its worker is."""
    for name in "fine", "forgetful", "fine", "fine":
        project("-m", "django", "procrastinate", "defer", name)
    program = """
from django.contrib.auth.models import User
client = Client()
client.force_login(User.objects.create_superuser("ada", "", "secret"))
def act(action, job_id):
    data = {"action": action, "_selected_action": [job_id]}
    return client.post("/admin/procrastinate/procrastinatejob/", data).status_code
"""
    project("-c", f"{BEFORE}{program}assert act('cancel', 3) == 302")
    assert "[cancelled]" in project("-m", "django", "procrastinate", "shell", "cancel", "4")
    work = project("-m", "django", "procrastinate", "worker", "--one-shot")
    assert (
        work.count("OutsideTransaction: this call has no connection, so PsycopgConnector would")
        == 1
    )
    program = program.replace("create_superuser(", "get(username=").replace(', "", "secret"', "")
    retried = project(
        "-c",
        f"{BEFORE}{program}print(statuses()); assert act('retry', 2) == 302; print(statuses())",
    )
    assert retried.splitlines() == [
        "{1: 'succeeded', 2: 'failed', 3: 'cancelled', 4: 'cancelled'}",
        "{1: 'succeeded', 2: 'todo', 3: 'cancelled', 4: 'cancelled'}",
    ]


def test_an_action_of_a_persons_is_an_application(project: Run) -> None:
    """An action that somebody adds to Procrastinate's admin is judged."""
    program = """
from django.contrib import admin
from procrastinate.contrib.django.admin import ProcrastinateJobAdmin

class Mine(ProcrastinateJobAdmin):
    def again(self, request, queryset):
        print(attempt(task.defer))
    actions = ["again", *ProcrastinateJobAdmin.actions]

mine = Mine(ProcrastinateJob, admin.site)
(again, *_), (retry, name, text), *_ = [one for one in mine._get_base_actions() if one[1] != "delete_selected"]
again(mine, None, None)
retry(mine, None, ProcrastinateJob.objects.none())
print(name, text)
"""
    refused, found = project("-c", BEFORE + program).splitlines()
    assert refused.startswith("this call has no connection, so DjangoConnector would commit")
    assert found == "retry Retry Job"
