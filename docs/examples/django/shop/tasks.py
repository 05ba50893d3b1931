"""What the worker does."""

from procrastinate.contrib.django import app

from .models import Confirmation


@app.task(name="confirm_order")
def confirm_order(order_id: int) -> None:
    """Tell the customer."""
    Confirmation.objects.create(order_id=order_id)
