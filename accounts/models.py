"""Who are the people, what can they do, and who vouches for it?"""

from decimal import Decimal
from typing import Any, ClassVar

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.contrib.postgres.functions import RandomUUID
from django.core.validators import MaxLengthValidator, MinLengthValidator, RegexValidator
from django.db import models

NOW = models.Func(function="now")


class UUIDKey(models.Model):
    id = models.UUIDField(primary_key=True, db_default=RandomUUID(), editable=False)

    class Meta:
        abstract = True


class Created(models.Model):
    created_at = models.DateTimeField(db_default=NOW, editable=False)

    class Meta:
        abstract = True


class Record(UUIDKey, Created):
    """The columns of most tables: a UUID key and the time of creation, both database defaults."""

    class Meta:
        abstract = True


class UserManager(BaseUserManager["User"]):
    @classmethod
    def normalize_email(cls, email: str | None) -> str:
        """Return the address in lower case, so that one unique index covers every spelling."""
        return (email or "").strip().lower()

    def create_user(self, username: str, email: str, password: str | None = None, **fields: Any) -> "User":
        """Create an account that logs in with either ``username`` or ``email``.

        Raises:
            ValueError: if either of the two is empty.
        """
        if not username or not email:
            raise ValueError("An account needs a username and an email address.")
        user = self.model(username=self.model.normalize_username(username), email=self.normalize_email(email), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, username: str, email: str, password: str | None = None, **fields: Any) -> "User":
        """Create an account with every permission; see :meth:`create_user`."""
        return self.create_user(username, email, password, **{**fields, "is_staff": True, "is_superuser": True})


class MarkovUserIdField(models.CharField):  # type: ignore[type-arg]
    """A column that a trigger fills on INSERT. Django reads it back like a database default."""

    db_returning = True


class User(Record, AbstractBaseUser, PermissionsMixin):  # noqa: DJ008  (AbstractBaseUser has it)
    username = models.CharField(
        max_length=50,
        help_text="3 to 50 letters, digits, dots, dashes, plus signs or underscores.",
        validators=[
            MinLengthValidator(3),
            # No "@": a name that looks like somebody's email address could not log in.
            RegexValidator(r"^[\w.+-]+\Z", "Use letters, digits, dots, dashes, plus signs and underscores only."),
        ],
    )
    email = models.EmailField(max_length=255)
    password = models.CharField(max_length=255, db_column="password_hash")
    markov_user_id = MarkovUserIdField(max_length=100, null=True, blank=True, editable=False)
    is_active = models.BooleanField(default=True, db_default=True, help_text="Unset this instead of deleting accounts.")
    is_staff = models.BooleanField("staff", default=False, db_default=False, help_text="May log in to the admin.")
    is_superuser = models.BooleanField(
        "superuser", default=False, db_default=False, help_text="Has every permission without being given it."
    )
    updated_at = models.DateTimeField(auto_now=True, db_default=NOW)

    objects: ClassVar[UserManager] = UserManager()

    EMAIL_FIELD = "email"
    USERNAME_FIELD = "username"
    REQUIRED_FIELDS = ["email"]

    class Meta:
        db_table = "users"
        constraints = [
            models.UniqueConstraint(fields=["username"], name="idx_users_username"),
            models.UniqueConstraint(fields=["email"], name="idx_users_email"),
            models.UniqueConstraint(fields=["markov_user_id"], name="idx_users_markov_id"),
        ]

    def clean(self) -> None:
        super().clean()
        self.email = type(self).objects.normalize_email(self.email)


class Profile(models.Model):
    user = models.OneToOneField(User, models.CASCADE, primary_key=True)
    bio = models.TextField(null=True, blank=True, validators=[MaxLengthValidator(500)])
    location = models.CharField(max_length=255, null=True, blank=True)
    avatar_url = models.TextField(null=True, blank=True)

    class Meta:
        db_table = "profiles"

    def __str__(self) -> str:
        return f"Profile of {self.user_id}"


class Skill(Record):
    name = models.CharField(max_length=100)
    category = models.CharField(max_length=50, null=True, blank=True)
    description = models.TextField(null=True, blank=True)

    class Meta:
        db_table = "skills"
        constraints = [models.UniqueConstraint(fields=["name"], name="idx_skills_name")]
        indexes = [models.Index(fields=["category"], name="idx_skills_category")]

    def __str__(self) -> str:
        return self.name


class UserSkill(Created):
    pk = models.CompositePrimaryKey("user_id", "skill_id")
    user = models.ForeignKey(User, models.CASCADE, db_index=False, related_name="skills")
    skill = models.ForeignKey(Skill, models.CASCADE, db_index=False, related_name="users")
    proficiency_level = models.DecimalField(
        max_digits=3, decimal_places=2, null=True, blank=True, db_default=Decimal("0.00")
    )
    endorsements_count = models.IntegerField(null=True, blank=True, db_default=0)
    updated_at = models.DateTimeField(auto_now=True, db_default=NOW)

    class Meta:
        db_table = "user_skills"
        constraints = [
            models.CheckConstraint(condition=models.Q(proficiency_level__range=(0, 1)), name="check_proficiency")
        ]
        indexes = [
            models.Index(fields=["skill"], name="idx_user_skills_skill"),
            models.Index(fields=["-proficiency_level"], name="idx_user_skills_proficiency"),
        ]

    def __str__(self) -> str:
        return f"{self.skill_id} of {self.user_id}"


class Vouch(Record):
    class Weight(models.TextChoices):
        STRONG = "strong"
        MODERATE = "moderate"
        LIGHT = "light"

    voucher = models.ForeignKey(User, models.CASCADE, db_index=False, related_name="vouches_given")
    vouchee = models.ForeignKey(User, models.CASCADE, db_index=False, related_name="vouches_received")
    skill = models.ForeignKey(Skill, models.SET_NULL, null=True, blank=True, db_index=False, related_name="vouches")
    weight_hint = models.CharField(max_length=20, choices=Weight, null=True, blank=True)
    message = models.TextField(null=True, blank=True)
    markov_vouch_id = models.CharField(max_length=100, null=True, blank=True)

    class Meta:
        db_table = "vouches"
        verbose_name_plural = "vouches"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(weight_hint__in=["strong", "moderate", "light"]), name="check_weight_hint"
            ),
            models.CheckConstraint(condition=~models.Q(voucher=models.F("vouchee")), name="check_not_self_vouch"),
            models.UniqueConstraint(
                fields=["voucher", "vouchee", "skill"],
                condition=models.Q(skill__isnull=False),
                name="idx_vouches_unique",
            ),
            models.UniqueConstraint(fields=["markov_vouch_id"], name="idx_vouches_markov_id"),
        ]
        indexes = [
            models.Index(fields=["voucher"], name="idx_vouches_voucher"),
            models.Index(fields=["vouchee"], name="idx_vouches_vouchee"),
            models.Index(fields=["skill"], name="idx_vouches_skill"),
            models.Index(fields=["-created_at"], name="idx_vouches_created"),
        ]

    def __str__(self) -> str:
        return f"{self.voucher_id} vouches for {self.vouchee_id}"


class ReputationCache(models.Model):
    """The last reputation of a user that the Markov engine computed: a copy for reading."""

    user = models.OneToOneField(User, models.CASCADE, primary_key=True, related_name="reputation")
    reputation_score = models.DecimalField(max_digits=10, decimal_places=2)
    tier = models.CharField(max_length=50, null=True, blank=True)
    contributions_count = models.IntegerField(null=True, blank=True, db_default=0)
    vouches_received = models.IntegerField(null=True, blank=True, db_default=0)
    cached_at = models.DateTimeField(null=True, blank=True, db_default=NOW)

    class Meta:
        db_table = "reputation_cache"
        verbose_name = "cached reputation"
        indexes = [
            models.Index(fields=["-reputation_score"], name="idx_reputation_cache_score"),
            models.Index(fields=["tier"], name="idx_reputation_cache_tier"),
            models.Index(fields=["cached_at"], name="idx_reputation_cache_cached_at"),
        ]

    def __str__(self) -> str:
        return f"{self.user_id}: {self.reputation_score}"
