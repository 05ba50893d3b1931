"""The part of a project's settings that matters here."""

import os

SECRET_KEY = os.environ.get("SECRET_KEY", "for development alone")
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "procrastinate.contrib.django",
    "procrastinate_extconn_django",
    "shop",
]

# A job outside a transaction is an error here, and so is a job whose connection was forgotten.
PROCRASTINATE_EXTCONN = {"OUTSIDE_TRANSACTION": "error"}

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
        "HOST": os.environ.get("PGHOST", ""),
        "PORT": os.environ.get("PGPORT", ""),
        "USER": os.environ.get("PGUSER", ""),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
    }
}
