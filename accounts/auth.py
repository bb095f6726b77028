"""Who may log in: an account is found by its username or by its email address."""

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.http import HttpRequest

from accounts.models import User


class EmailOrUsernameBackend(ModelBackend):
    """Django's own backend, which also takes an email address where a username is asked for.

    No username holds an ``@``, so what somebody types is never both.
    """

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> User | None:
        if username and "@" in username:
            email = User.objects.normalize_email(username)
            username = User.objects.filter(email=email).values_list("username", flat=True).first() or username
        return super().authenticate(request, username=username, password=password, **kwargs)
