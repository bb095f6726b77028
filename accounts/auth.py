"""Who may log in? An account logs in with its username or its email address."""

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.http import HttpRequest

from accounts.models import User


class EmailOrUsernameBackend(ModelBackend):
    """Django's backend, which also takes an email address as the username.

    No username holds an ``@``, so a text is never both.
    """

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> User | None:
        if username and "@" in username:
            email = User.objects.normalize_email(username)
            username = User.objects.filter(email=email).values_list("username", flat=True).first() or username
        return super().authenticate(request, username=username, password=password, **kwargs)
