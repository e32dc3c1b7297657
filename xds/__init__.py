"""The xDS protocol for Python: a sans-IO state machine and a grpc.aio server around it.

Knows Envoy's discovery protocol and nothing of services, registries or policies:
`types` is what is served, `protocol` decides what is said, `wire` spells it, `cache` holds the newest
snapshot per node group, `server` moves the bytes, `status` remembers what each client acknowledged.
"""
