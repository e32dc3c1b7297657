"""How the process is watched: metrics and logs. Only the composition root wires them; the core reports by events."""
