"""When to publish: at once after a pause, else when things settle, but never later than a ceiling.

Pure: time is an argument, in seconds of any monotonic clock.
"""


class Debounce:
    """Decide when pending changes are published.

    A change after at least `quiet_s` of calm is due at once; further ones wait until `quiet_s` have passed
    without another, or `ceiling_s` since the first that waits, so that a steady stream cannot starve
    publication (conformance item P-04).
    """

    def __init__(self, *, quiet_s: float = 0.01, ceiling_s: float = 0.1) -> None:
        self._quiet_s = quiet_s
        self._ceiling_s = ceiling_s
        self._first: float | None = None
        self._last = float("-inf")
        self._published = float("-inf")

    def touch(self, now: float) -> None:
        """Note a change."""
        if self._first is None:
            self._first = now
        self._last = now

    def due(self) -> float | None:
        """Return the time at which to publish; None where nothing is pending."""
        if self._first is None:
            return None
        if self._first - self._published >= self._quiet_s:
            return self._first
        return min(self._last + self._quiet_s, self._first + self._ceiling_s)

    def published(self, now: float) -> None:
        """Note that everything pending has been published."""
        self._first = None
        self._published = now
