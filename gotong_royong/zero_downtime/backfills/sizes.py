"""How large is the next batch, so that it takes its target time?"""

from .ranges import BLOCKS
from .statements import KEYS, PHYSICAL, STRIPES

TARGET = 0.2  # seconds of a batch
AMONG_OTHERS = 0.05  # seconds of a batch while there is a reason to go slower: others may want its rows
SLICE = 0.0015  # seconds of a slice of such a batch, between two pauses
READ = 0.005  # seconds of a slice that only reads
GAP = 0.05  # pause after a slice, as a part of its time; with the cost of each slice this is half speed
SAME = 0.8  # a part of the last time that counts as just as long

FIRST = {KEYS: 1_000, PHYSICAL: 64, STRIPES: 256}  # rows, or blocks
FEW = {KEYS: 250, PHYSICAL: 4, STRIPES: 32}  # that are changed row by row if some fail
FIRST_IN_PYTHON = 1  # rows, or blocks: one may take any time
LARGEST = {KEYS: 100_000, PHYSICAL: BLOCKS, STRIPES: BLOCKS}


class Size:
    """A number of rows or blocks that adapts to the time they take: ``now`` is that of the next batch."""

    def __init__(self, first: int, largest: int) -> None:
        self.now, self.largest = first, largest
        self._before = (0, 0.0)

    def follow(self, done: int, seconds: float, target: float) -> None:
        """Set the next size to take about ``target`` seconds, after ``done`` took ``seconds``.

        A batch smaller than ``now``, at the end of a range, does not make it larger. If fewer took about as long as
        more, the rows are not what takes the time: it goes back to more.
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
