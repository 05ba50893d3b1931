"""What the web does."""

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from .models import Order
from .tasks import confirm_order


class PaymentRefused(Exception):
    """The order is not to be."""


@csrf_exempt  # for curl's sake
@require_POST
def create_order(request: HttpRequest) -> JsonResponse:
    """Place an order: with its job, or not at all."""
    try:
        with transaction.atomic():
            order = Order.objects.create()
            confirm_order.configure(connection=connection).defer(order_id=order.id)
            if request.GET["paid"] == "false":
                raise PaymentRefused
    except PaymentRefused:
        return JsonResponse({"detail": "The payment was refused."}, status=402)
    return JsonResponse({"id": order.id}, status=201)
