"""The Django app: ``INSTALLED_APPS = [..., "procrastinate_extconn_outbox.django"]``. Its migration has the tables."""
