"""Orders with Flask and SQLAlchemy: an order and its job commit together.

$ export PGHOST=... PGDATABASE=...
$ PYTHONPATH=. procrastinate --app=shop.queue schema --apply
$ flask --app shop run &
$ curl -X POST 'http://127.0.0.1:5000/orders?paid=true'
$ PYTHONPATH=. procrastinate --app=shop.queue worker
"""

from __future__ import annotations

from contextlib import ExitStack

import procrastinate
from flask import Flask, Response, g, request
from sqlalchemy import ForeignKey, create_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    scoped_session,
    sessionmaker,
)

import procrastinate_extconn as extconn

# A job outside a transaction is an error here, and so is a job whose connection was forgotten.
extconn.install(outside_transaction="error")

engine = create_engine("postgresql+psycopg://")
session = scoped_session(sessionmaker(engine))
queue = procrastinate.App(connector=procrastinate.PsycopgConnector())


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)


class Confirmation(Base):
    __tablename__ = "confirmations"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))


@queue.task(name="confirm_order")
def confirm_order(order_id: int) -> None:
    with sessionmaker(engine).begin() as session:
        session.add(Confirmation(order_id=order_id))


web = Flask(__name__)
Base.metadata.create_all(engine)


@web.before_request
def begin() -> None:
    """One request, one transaction: every job deferred meanwhile is part of it."""
    g.block = ExitStack()
    g.block.enter_context(extconn.using(session))


@web.after_request
def commit(response: Response) -> Response:
    """Commit what succeeded before the response is sent, so that a 201 is true."""
    if response.status_code < 400:
        session.commit()
    return response


@web.teardown_request
def end(exception: BaseException | None) -> None:
    """Roll back what is left."""
    if "block" in g:  # another hook may have answered before
        g.block.close()
    session.remove()


@web.post("/orders")
def create_order() -> tuple[dict[str, object], int]:
    order = Order()
    session.add(order)
    session.flush()
    notify(order.id)
    if request.args["paid"] == "false":
        return {"detail": "The payment was refused."}, 402
    return {"id": order.id}, 201


def notify(order_id: int) -> None:
    """Far from the session: nobody hands it a connection."""
    confirm_order.defer(order_id=order_id)
