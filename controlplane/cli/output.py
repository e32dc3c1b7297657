"""How commands print data: a table for people, JSON and YAML for programs; the same option everywhere."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer


class OutputFormat(StrEnum):
    """Name the forms in which data is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="The form of what is printed.")]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as aligned columns under a header; the last column is not padded."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def show(data: object, output: OutputFormat, as_table: str) -> None:
    """Print `data`, which JSON can hold, in the form asked for; `as_table` is what it is for people."""
    match output:
        case OutputFormat.TABLE:
            typer.echo(as_table)
        case OutputFormat.JSON:
            import json  # noqa: PLC0415

            typer.echo(json.dumps(data, indent=2))
        case OutputFormat.YAML:
            import yaml  # noqa: PLC0415

            typer.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)
