"""Raw xDS resources: what an operator writes in proto3 JSON, read, judged, and laid over what services make.

`reading` turns JSON into a message, `lint` says what clients would refuse in it, `references` what it refers to,
`certificates` for how long those in it are good, `compile` makes resources of it, `overlay` adds the resources to the
snapshots.
Pure: no clock, no I/O.
"""
