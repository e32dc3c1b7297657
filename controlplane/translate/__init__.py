"""From planned clusters to Envoy's resources: spelling, no decisions.

One module for each kind of resource, `names` for what they are called, `lint` for what a client would refuse,
and `snapshot` for all of them together. Pure and deterministic: everything is sorted, no clock is read, and equal
inputs give equal bytes (law 3).
"""

from controlplane.translate.snapshot import warm_up

__all__ = ["warm_up"]
