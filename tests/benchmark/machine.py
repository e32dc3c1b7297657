"""What else the machine did meanwhile: figures taken beside other work are marked, not believed."""

import os
import time
from pathlib import Path

from benchmark.processes import TICKS_PER_S, cpu_s

FOREIGN = 0.08
"""The share of the machine's CPU that other processes may have used before a figure is called disturbed."""


class Foreign:
    """Watch from here on how much of the machine neither this process, nor its children, nor these processes use."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._since = time.monotonic()
        self._before = self._foreign_s()

    def _foreign_s(self) -> float:
        return _busy_s() - sum(os.times()[:4]) - sum(cpu_s(pid) for pid in self._pids)

    @property
    def share(self) -> float:
        """Return which share of all cores others used."""
        return (self._foreign_s() - self._before) / (time.monotonic() - self._since) / (os.cpu_count() or 1)


def _busy_s() -> float:
    user, nice, system, _idle, _wait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S
