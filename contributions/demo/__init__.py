"""Which rows does the demo have? Rows for 15 tables, drawn from a seed; `load_demo` puts them in a database.

The same number of people and the same seed give the same rows, byte for byte, on every machine.
People live in neighborhoods, each with a generator of its own, so that one neighborhood at a time is all there is in
memory. They work among themselves; people of one older neighborhood vouch and verify with them.

    words.py    names, places, sentences
    dice.py     the generator, and the days between which everything happens
    tables.py   the columns
    events.py   what the Markov engine was told
    people.py   users, profiles, skills, vouches, reputation
    work.py     tasks, contributions, evidence, witnesses, verifications
    ahead.py    the process that draws
    loading.py  the way into the database
"""

from dataclasses import dataclass

from contributions.demo.dice import Dice
from contributions.demo.people import Person, Skills, add_people, add_skills, add_vouches, draw_people, draw_skills
from contributions.demo.tables import Rows, nothing, text
from contributions.demo.words import CITIES
from contributions.demo.work import add_contributions, add_tasks

MARK = "!load_demo "
FEWEST = 2  # no user vouches for themselves or verifies their own work
NEIGHBORHOOD = 100


@dataclass(frozen=True)
class Demo:
    """A demo; two with the same values have the same rows."""

    users: int
    seed: int

    @property
    def password(self) -> str:
        """The password hash of its people: no password matches it, and it identifies the demo."""
        return f"{MARK}--users {self.users} --seed {self.seed}"

    @property
    def neighborhoods(self) -> range:
        return range(-(-self.users // NEIGHBORHOOD))

    def rows(self, neighborhood: int) -> Rows:
        """Return the rows of one neighborhood; the first also has the skills, which all share."""
        rows, dice = nothing(), self._dice("rows", neighborhood)
        skills, people = self._skills(), self._people(neighborhood)
        crowd = people + (self._people(int(dice.random() * neighborhood))[::5] if neighborhood else [])
        if not neighborhood:
            add_skills(rows, skills)
        vouches = add_vouches(rows, dice, people, crowd)
        contributions = add_contributions(rows, dice, people, crowd, add_tasks(rows, dice, people, skills))
        add_people(rows, dice, people, vouches, contributions, password=self.password)
        return rows

    def text(self, neighborhood: int) -> dict[str, bytes]:
        """Return the same rows as COPY reads them."""
        return {table: text(rows) for table, rows in self.rows(neighborhood).items()}

    def _dice(self, *purpose: object) -> Dice:
        return Dice("/".join(map(str, (self.users, self.seed, *purpose))))

    def _skills(self) -> Skills:
        return draw_skills(self._dice("skills"))

    def _people(self, neighborhood: int) -> list[Person]:
        first, beyond = (self.users * border // len(self.neighborhoods) for border in (neighborhood, neighborhood + 1))
        numbers = range(first + 1, beyond + 1)
        city = CITIES[neighborhood % len(CITIES)]
        return draw_people(self._dice("people", neighborhood), self._skills(), city, numbers, users=self.users)
