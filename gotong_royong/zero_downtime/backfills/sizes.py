"""How large is the next batch, so that it takes as long as it shall?"""

from .ranges import BLOCKS
from .statements import KEYS, PHYSICAL, STRIPES

TARGET = 0.2  # seconds that a batch shall take
AMONG_OTHERS = 0.05  # seconds that it shall take while there is a reason to go slower, for somebody may want its rows
SLICE = 0.0015  # seconds that a slice of a batch shall take then, between two pauses
READ = 0.005  # seconds that one shall take which only reads
GAP = 0.05  # of the time of a slice, for which it pauses after it; with what each costs, it comes to half speed
SAME = 0.8  # of the time that more rows took is no less

FIRST = {KEYS: 1_000, PHYSICAL: 64, STRIPES: 256}  # rows, or blocks
FEW = {KEYS: 250, PHYSICAL: 4, STRIPES: 32}  # that are done row by row, where some cannot be done
FIRST_IN_PYTHON = 1  # rows, or blocks: who knows how long one takes
LARGEST = {KEYS: 100_000, PHYSICAL: BLOCKS, STRIPES: BLOCKS}


class Size:
    """A number of rows or blocks that follows the time that they took: ``now`` is that of the next batch."""

    def __init__(self, first: int, largest: int) -> None:
        self.now, self.largest = first, largest
        self._before = (0, 0.0)

    def follow(self, done: int, seconds: float, target: float) -> None:
        """Have so many next that they take about ``target`` seconds, after ``done`` took ``seconds``.

        Where fewer than it is now were left to be done, that they were quick says nothing. Where fewer took about as
        long as more, it is not the rows that take the time, and to take still fewer of them would be in vain.
        """
        more, then = self._before
        factor = min(2.0, max(0.5, target / max(seconds, 0.0001)))
        if factor < 1 and done < more and seconds > SAME * then:
            self.now = more
        elif factor <= 1 or done >= self.now:
            self.now = max(1, min(round(done * factor), self.largest))
        self._before = done, seconds

    def divide(self, by: int) -> None:
        self.now = max(1, self.now // by)
