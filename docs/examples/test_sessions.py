"""Code that opens and commits sessions of its own, inside one transaction that is rolled back."""

from collections.abc import Iterator

import procrastinate
import pytest
from sqlalchemy import Connection, ForeignKey, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

import procrastinate_extconn as extconn
from procrastinate_extconn.testing import assert_deferred, assert_not_deferred, run_deferred

extconn.install(outside_transaction="error")

engine = create_engine("postgresql+psycopg://")
Session = sessionmaker(engine)
app = procrastinate.App(connector=procrastinate.PsycopgConnector())


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "web_order"

    id: Mapped[int] = mapped_column(primary_key=True)


class Confirmation(Base):
    __tablename__ = "web_confirmation"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("web_order.id"))


@app.task(name="confirm_order")
def confirm_order(order_id: int) -> None:
    with Session.begin() as session:
        session.add(Confirmation(order_id=order_id))


def place_order(*, paid: bool) -> int:
    with Session.begin() as session:
        order = Order()
        session.add(order)
        session.flush()
        confirm_order.configure(connection=session).defer(order_id=order.id)
        if not paid:
            raise ValueError("The payment was refused.")
        return order.id


# -- the tests ---------------------------------------------------------------------------------


@pytest.fixture
def connection() -> Iterator[Connection]:
    with engine.connect() as connection, connection.begin() as transaction:
        Base.metadata.create_all(connection)
        # Each session is a savepoint of this transaction.
        Session.configure(bind=connection, join_transaction_mode="create_savepoint")
        yield connection
        Session.configure(bind=engine, join_transaction_mode="conditional_savepoint")
        transaction.rollback()
    engine.dispose()


@pytest.mark.parametrize("time", ["first", "second"])
def test_an_order_is_confirmed(connection: Connection, time: str) -> None:
    order_id = place_order(paid=True)
    assert_deferred(connection, confirm_order, order_id=order_id)

    [run] = run_deferred(connection, app)
    assert run.job.status == "succeeded"
    with Session() as session:  # the other test's confirmation is gone
        assert session.scalars(select(Confirmation.order_id)).all() == [order_id]


def test_a_refused_payment_leaves_nothing(connection: Connection) -> None:
    with pytest.raises(ValueError, match="refused"):
        place_order(paid=False)
    assert_not_deferred(connection, confirm_order)
    with Session() as session:
        assert session.scalar(select(func.count(Order.id))) == 0
