"""The admin, through Django's client on a real database."""

from html.parser import HTMLParser

import pytest
from django.apps import apps
from django.contrib import admin
from django.db import connection
from django.urls import reverse

from accounts.models import User, UserSkill
from contributions.models import Contribution, WebhookEvent
from gotong_royong.admin import Paginator
from tasks.models import TaskSkill
from tests import samples

PASSWORD = "a-Fine-Long-passphrase"
COMPOSITE = {UserSkill, TaskSkill}
TABLES = [
    model
    for app in ("accounts", "tasks", "contributions")
    for model in apps.get_app_config(app).get_models()
    if model not in COMPOSITE
]
every_table = pytest.mark.parametrize("model", TABLES, ids=lambda model: model.__name__)


def url(model, page, *args, **query):
    options = model._meta
    address = reverse(f"admin:{options.app_label}_{options.model_name}_{page}", args=args)
    return address + ("?" + "&".join(f"{name}={value}" for name, value in query.items()) if query else "")


def rows_listed(response):
    return list(response.context["cl"].result_list)


class Browser(HTMLParser):
    """Collects what a browser would send of a page's main form."""

    def __init__(self, response):
        super().__init__()
        self.data, self.names, self.select, self.textarea = {}, set(), None, None
        self.feed(response.content.decode())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        name, kind = attributes.get("name"), attributes.get("type")
        self.names.add(name)
        if tag == "select":
            self.select, self.multiple = name, "multiple" in attributes
        elif tag == "option" and self.select and not self.multiple:
            if "selected" in attributes or self.select not in self.data:
                self.data[self.select] = attributes["value"]
        elif tag == "option" and self.select and "selected" in attributes:
            self.data.setdefault(self.select, []).append(attributes["value"])
        elif tag == "textarea":
            self.textarea = name
            self.data[name] = ""
        elif tag == "input" and name and kind != "submit":
            if kind not in ("checkbox", "radio"):
                self.data[name] = attributes.get("value", "")
            elif "checked" in attributes:
                self.data[name] = attributes.get("value", "on")

    def handle_data(self, text):
        if self.textarea:
            self.data[self.textarea] += text

    def handle_endtag(self, tag):
        if tag == "textarea":
            self.data[self.textarea] = self.data[self.textarea].removeprefix("\n")
            self.textarea = None
        elif tag == "select":
            self.select = None


def send(client, address, **changes):
    """Fill in a page's form as a browser would, and send it."""
    form = Browser(client.get(address))
    assert changes.keys() <= form.names, "the page does not ask for this"
    return client.post(address, {**form.data, **changes})


@pytest.fixture
def admin_user():
    """A superuser without a password, because hashing one takes longer than a page."""
    return User.objects.create_superuser("admin", "admin@example.org")


@pytest.fixture
def rows():
    return samples.make(3)


@pytest.fixture
def few(monkeypatch):
    """Make a list of more than ten rows a big one; at up to a hundred, the planner is not believed."""
    monkeypatch.setattr(Paginator, "exact_up_to", 10)
    for model in (Contribution, WebhookEvent):
        monkeypatch.setattr(admin.site.get_model_admin(model), "list_per_page", 5)


def analyze(model):
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {model._meta.db_table}")
