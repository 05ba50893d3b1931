"""Orders with Django: an order and its job commit together.

$ export PGHOST=... PGDATABASE=...
$ python manage.py migrate
$ python manage.py runserver &
$ curl -X POST 'http://127.0.0.1:8000/orders?paid=true'
$ python manage.py procrastinate worker
"""

import os

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    execute_from_command_line()
