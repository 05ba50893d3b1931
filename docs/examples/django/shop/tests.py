"""What a request leaves behind: run with `python manage.py test`."""

from django.db import connection
from django.test import TestCase
from procrastinate.contrib.django import app

from procrastinate_extconn.testing import assert_deferred, assert_not_deferred, run_deferred

from .models import Confirmation, Order
from .tasks import confirm_order


class OrdersTest(TestCase):
    """Each test runs in a transaction that Django rolls back."""

    def test_an_order_is_confirmed(self) -> None:
        response = self.client.post("/orders?paid=true")
        assert response.status_code == 201
        order_id = response.json()["id"]
        assert_deferred(connection, confirm_order, order_id=order_id)

        run_deferred(connection, app)
        assert Confirmation.objects.filter(order_id=order_id).exists()
        assert_not_deferred(connection, confirm_order)

    def test_a_refused_payment_leaves_nothing(self) -> None:
        response = self.client.post("/orders?paid=false")
        assert response.status_code == 402
        assert not Order.objects.exists()
        assert_not_deferred(connection, confirm_order)
