"""The page docs/metrics.md, generated: `python -m controlplane.telemetry.reference > docs/metrics.md`."""

import sys

from controlplane.telemetry.families import FAMILIES, Family

_HEAD = """\
# Metrics

Generated from `controlplane/telemetry/families.py`; a test holds the two together. `GET /metrics` answers in
Prometheus' text format, or in OpenMetrics where the `Accept` header asks for it. Durations are in seconds.
No label ever holds a node, stream or instance id. Names marked *fixed* never change.

Besides these there are the usual `process_*` metrics (CPU, memory, open files, start time) on Linux.
"""


def reference() -> str:
    """Return the page: every metric with type, labels, meaning and a query to begin with."""
    return "\n".join([_HEAD, *map(_section, FAMILIES)])


def _section(family: Family) -> str:
    lines = [
        f"## `{family.name}`",
        "",
        f"{family.kind.capitalize()}{', *fixed*' if family.fixed else ''}. {family.help}",
        "",
    ]
    if family.labels:
        lines += ["| label | values |", "|---|---|"]
        lines += [f"| `{label}` | {values} |" for label, values in family.labels.items()]
        lines.append("")
    if family.buckets:
        lines += ["Buckets up to: " + ", ".join(f"{bound:g}" for bound in family.buckets) + " s.", ""]
    lines += ["```promql", family.query, "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(reference())
