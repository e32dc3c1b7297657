"""The service-discovery product; its modules read top to bottom in the order data flows.

registry → catalog ← health, then plan → translate → publish → the xDS server of the `xds` package.
The edges (api, cli) write to registries and read from views, never anything else.
"""
