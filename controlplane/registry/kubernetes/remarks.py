"""What the registry holds and cannot be used, by its place there: kept small, and forgotten when it is mended."""

from collections.abc import Sequence

from controlplane.registry import REMARKS_MAX

_TOLD_MAX = 3


class Remarks:
    """Hold at most `REMARKS_MAX` remarks in `said`; mutable."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def set(self, place: str, faults: Sequence[str]) -> None:
        """Say what is wrong at a place; nothing, where there are no faults."""
        if not faults:
            self.said.pop(place, None)
        elif place in self.said or len(self.said) < REMARKS_MAX:
            self.said[place] = "; ".join(faults[:_TOLD_MAX])
