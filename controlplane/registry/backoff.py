"""How long to wait before a registry is tried again. Pure but for the random source, which is an argument."""

from random import Random

FIRST_S = 0.1
CEILING_S = 5.0


class Backoff:
    """Give growing delays with jitter, so that many control planes do not come back in step."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._next_s = FIRST_S

    def next_s(self) -> float:
        """Return the seconds to wait before the next try: half to the whole of a step that doubles up to 5 s."""
        step = self._next_s
        self._next_s = min(2 * step, CEILING_S)
        return step * (0.5 + self._random.random() / 2)

    def reset(self) -> None:
        """Begin anew: it worked."""
        self._next_s = FIRST_S
