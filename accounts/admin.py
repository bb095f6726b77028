"""Which admin pages show people, their skills and their vouches? ``gotong_royong.admin`` has their base."""

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth import admin as auth
from django.db.models import Q
from django.http import HttpRequest
from django.utils.safestring import SafeString

from accounts.models import Profile, ReputationCache, Skill, User, Vouch
from gotong_royong.admin import BigTableAdmin, DatabaseDefaults, TableAdmin, rows_of


class LoginForm(AdminAuthenticationForm):
    """Asks for a username or an email, which :class:`accounts.auth.EmailOrUsernameBackend` takes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].label = "Username or email"
        self.fields["username"].widget.attrs["maxlength"] = User._meta.get_field("email").max_length


admin.site.login_form = LoginForm


def beginning_with(term: str, limit: int = 100) -> set[UUID]:
    """Return the first users whose username or email begins with the term, for autocompletion.

    The unique indexes serve ``LIKE 'term%'`` only in the collation C, but ``>=`` and ORDER BY in every collation. So
    this reads ``limit`` rows of the index from the term on, and keeps those that begin with it. The collation C sorts
    capital letters elsewhere: they are found if typed.
    """
    found: set[UUID] = set()
    for column in ("username", "email"):
        for start in {term, term.lower()}:
            neighbors = User.objects.filter(**{f"{column}__gte": start}).order_by(column).values_list("pk", column)
            found |= {pk for pk, value in neighbors[:limit] if value.lower().startswith(term.lower())}
    return found


class ProfileInline(DatabaseDefaults, admin.StackedInline):  # type: ignore[type-arg]
    model = Profile


class ReputationInline(DatabaseDefaults, admin.TabularInline):  # type: ignore[type-arg]
    """Read-only, because the Markov engine computes the reputation."""

    model = ReputationCache
    can_delete = False
    verbose_name_plural = "cached reputation"

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(User)
class UserAdmin(BigTableAdmin, auth.UserAdmin):  # type: ignore[type-arg]
    list_display = ("username", "email", "is_active", "is_staff", "is_superuser", "last_login", "created_at")
    list_filter = ("is_active", "is_staff", "is_superuser")
    search_fields = ("id", "username", "email", "markov_user_id")
    search_help_text = "The beginning of a username or email (finds the first 100 of each), or a whole id or Markov id."
    sortable_by = ("username", "email")
    ordering = ("username",)
    inlines = (ProfileInline, ReputationInline)
    readonly_fields = ("last_login", "skills")
    fieldsets = (
        (None, {"fields": ("username", "email", "password", "is_active", "is_staff", "is_superuser")}),
        ("Permissions", {"classes": ("collapse",), "fields": ("groups", "user_permissions")}),
        ("Record", {"fields": ("skills", "id", "markov_user_id", "created_at", "updated_at", "last_login")}),
    )
    add_fieldsets = (
        (None, {"classes": ("wide",), "fields": ("username", "email", "usable_password", "password1", "password2")}),
    )

    @admin.display
    def skills(self, user: User) -> SafeString:
        columns = ("skill", "proficiency_level", "endorsements_count", "created_at")
        return rows_of(user.skills.select_related("skill").order_by("skill__name"), *columns)

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        return super().get_inlines(request, obj) if obj else ()

    def matching(self, term: str) -> Q:
        return super().matching(term) | Q(pk__in=beginning_with(term))


@admin.register(Profile)
class ProfileAdmin(BigTableAdmin):
    list_display = ("user", "location", "avatar_url")
    search_fields = ("user", "user__username", "user__email")
    search_help_text = "The user's whole username, email or id."


@admin.register(Skill)
class SkillAdmin(TableAdmin):
    list_display = ("name", "category", "created_at")
    list_filter = ("category",)
    search_fields = ("name", "category")
    search_help_text = "A part of the name or the category."
    ordering = ("name",)
    shown = ("users",)

    @admin.display
    def users(self, skill: Skill) -> SafeString:
        return rows_of(skill.users.select_related("user"), "user", "proficiency_level", "endorsements_count")


@admin.register(Vouch)
class VouchAdmin(BigTableAdmin):
    list_display = ("voucher", "vouchee", "skill", "weight_hint", "created_at")
    list_filter = ("weight_hint",)
    search_fields = (
        "id",
        "markov_vouch_id",
        "voucher__username",
        "voucher__email",
        "vouchee__username",
        "vouchee__email",
    )
    search_help_text = "A whole id or Markov id, or the whole username or email of either user."
    date_hierarchy = "created_at"
    sortable_by = ("created_at",)
    ordering = ("-created_at",)
    shown = ("markov_vouch_id",)


@admin.register(ReputationCache)
class ReputationCacheAdmin(BigTableAdmin):
    list_display = ("user", "reputation_score", "tier", "contributions_count", "vouches_received", "cached_at")
    search_fields = ("user", "user__username", "user__email", "tier")
    search_help_text = "The user's whole username, email or id, or a whole tier."
    date_hierarchy = "cached_at"
    sortable_by = ("reputation_score", "cached_at")
    ordering = ("-reputation_score",)
