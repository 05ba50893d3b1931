"""A Django project in one file, with an app on a connector of its own: requests, transactions and jobs."""

import os
from collections.abc import Callable

import django
import procrastinate
from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

import procrastinate_extconn as extconn

DATABASE = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": os.environ["PGDATABASE"],
    "HOST": os.environ["PGHOST"],
    "PORT": os.environ["PGPORT"],
    "USER": os.environ["PGUSER"],
    "PASSWORD": os.environ["PGPASSWORD"],
    "ATOMIC_REQUESTS": True,
}
settings.configure(
    SECRET_KEY=os.environ.get("SECRET_KEY", "for development alone"),
    DATABASES={"default": DATABASE},
    INSTALLED_APPS=["procrastinate_extconn_django"],
    MIDDLEWARE=[f"{__name__}.jobs_with_rows"],
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["testserver"],
)
django.setup()

app = procrastinate.App(connector=procrastinate.PsycopgConnector())


@app.task(name="process_order")
def process_order(order_id: int) -> None: ...


def jobs_with_rows(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """A job that a request defers goes where its rows go."""

    def middleware(request: HttpRequest) -> HttpResponse:
        with extconn.using(connection):
            return get_response(request)

    return middleware


def create_order(request: HttpRequest, order_id: int) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (id) VALUES (%s)", [order_id])
    process_order.defer(order_id=order_id)
    if "fail" in request.GET:
        raise RuntimeError("after the job was deferred")
    return HttpResponse(status=201)


urlpatterns = [path("orders/<int:order_id>", create_order)]


def test_an_order_has_its_job_or_neither_is_there() -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    client = Client(raise_request_exception=False)
    assert client.post("/orders/41?fail").status_code == 500
    assert client.post("/orders/42").status_code == 201
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM orders")
        assert cursor.fetchall() == [(42,)]
    with app.open():
        assert [job.task_kwargs for job in app.job_manager.list_jobs()] == [{"order_id": 42}]
    connection.close()
