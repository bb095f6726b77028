"""Who lives in the demo, what can they do, and who vouches for it?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from contributions.demo import words
from contributions.demo.dice import DAY, FIRST_DAY, LAST_DAY, LAST_SIGNUP, Dice, at
from contributions.demo.events import add_event
from contributions.demo.tables import Rows

TIERS = ((60, "newcomer"), (90, "contributor"), (140, "trusted"))


class Skill(NamedTuple):
    id: str
    name: str


class Person(NamedTuple):
    id: str
    name: str
    number: int
    joined: int
    city: words.City
    district: str
    skills: list[Skill]


Skills = dict[str, list[Skill]]  # by category
Vouches = Counter[tuple[str, str | None]]  # by the ids of person and skill; None stands for all vouches of a person


def draw_skills(dice: Dice) -> Skills:
    return {category: [Skill(dice.uuid(), name) for name in trade.skills] for category, trade in words.TRADES.items()}


def draw_people(dice: Dice, skills: Skills, city: words.City, numbers: range, *, users: int) -> list[Person]:
    """Return the people of ``city`` with these numbers, of ``users`` in all; who has a higher number joined later."""
    people = []
    for number in numbers:
        main, side = dice.some(tuple(skills.values()), 2, 2)
        people.append(
            Person(
                id=dice.uuid(),
                name=f"{dice.pick(words.GIVEN_NAMES)} {dice.pick(words.FAMILY_NAMES)}",
                number=number,
                joined=FIRST_DAY + (LAST_SIGNUP - FIRST_DAY) * number // (users + 1),
                city=city,
                district=dice.pick(city.districts),
                skills=dice.some(main, 2, 2) + dice.some(side, 1, 2),
            )
        )
    return people


def another(dice: Dice, crowd: Sequence[Person], person: Person) -> Person:
    """Return one of ``crowd`` other than ``person``. There must be one."""
    while (other := dice.pick(crowd)).id == person.id:
        pass
    return other


def add_skills(rows: Rows, skills: Skills) -> None:
    rows["skills"] += [
        (
            skill.id,
            skill.name[0].upper() + skill.name[1:],
            category,
            f"Ask these people for {skill.name}.",
            at(FIRST_DAY),
        )
        for category, known in skills.items()
        for skill in known
    ]


def add_vouches(rows: Rows, dice: Dice, people: Sequence[Person], crowd: Sequence[Person]) -> Vouches:
    """Let ``crowd`` vouch for ``people``, five times for each on average, and return how often it did."""
    vouches: Vouches = Counter()
    taken = set()
    for number in range(5 * len(people)):
        vouchee = dice.pick(people)
        voucher, craft = another(dice, crowd, vouchee), dice.pick(vouchee.skills)
        named = dice.random() < 0.85 and (voucher.id, vouchee.id, craft.id) not in taken
        skill = craft.id if named else None
        taken.add((voucher.id, vouchee.id, skill))
        vouches.update({(vouchee.id, None), (vouchee.id, skill)})

        id, created = dice.uuid(), dice.after(max(voucher.joined, vouchee.joined))
        weight = dice.pick(("strong", "moderate", "moderate", "light", "light", None))
        message = dice.pick(words.MESSAGES).format(skill=craft.name, name=vouchee.name) if dice.random() < 0.7 else None
        markov = f"vouch_{dice.getrandbits(96):024x}" if dice.random() < 0.6 else None
        rows["vouches"].append((id, voucher.id, vouchee.id, skill, weight, message, markov, at(created)))
        if number % 5 == 0:
            add_event(rows, dice, "vouch_submitted", created, vouch=id, voucher=voucher.id, vouchee=vouchee.id)
    return vouches


def add_people(
    rows: Rows,
    dice: Dice,
    people: Sequence[Person],
    vouches: Vouches,
    contributions: Mapping[str, int],
    *,
    password: str,
) -> None:
    """Add the users with what stands about each of them in tables of their own; the counts in it are the true ones."""
    for person in people:
        login = f"{person.name.replace(' ', '.').lower()}.{person.number}"
        updated = dice.after(person.joined)
        seen = at(dice.after(updated)) if dice.random() < 0.8 else None
        times = at(person.joined), at(updated)
        active = dice.random() < 0.98
        rows["users"].append((person.id, login, f"{login}@example.org", password, active, seen, *times))

        about = {"city": person.city.name, "district": person.district, "skill": person.skills[0].name}
        bio = dice.pick(words.BIOS).format_map(about) if dice.random() < 0.8 else None
        avatar = f"https://media.example.org/avatars/{person.id}.jpg" if dice.random() < 0.6 else None
        rows["profiles"].append((person.id, bio, f"{person.district}, {person.city.name}", avatar))

        for skill in person.skills:
            learned = dice.after(person.joined)
            level, times = f"{dice.random():.2f}", (at(learned), at(dice.after(learned)))
            rows["user_skills"].append((person.id, skill.id, level, vouches[person.id, skill.id], *times))

        done, received = contributions.get(person.id, 0), vouches[person.id, None]
        score = 5 * done + 3 * received + 40 * dice.random()
        tier = next((tier for limit, tier in TIERS if score < limit), "pillar")
        cached = at(LAST_DAY - int(DAY * dice.random()))
        rows["reputation_cache"].append((person.id, f"{score:.2f}", tier, done, received, cached))
