"""An order, and what its job makes of it."""

from django.db import models


class Order(models.Model):
    """What somebody bought."""


class Confirmation(models.Model):
    """That they were told."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE)
