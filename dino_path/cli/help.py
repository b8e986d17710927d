"""How commands explain themselves: words for types where they help, and examples that can be copied."""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import Any

from typer.core import TyperCommand

NUMBER_RANGE = re.compile(r"<(int|float) range>")
LIST = re.compile(r"<list\[(\w+)\]>")
TYPE = re.compile(r" <[^>]*>$")


class Command(TyperCommand):
    """A command whose epilog is its examples, one a line, shown as they are."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *(argument.metavar or (argument.name or "").upper() for argument in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            name, text = record
            if param.param_type_name == "argument":
                sections["Arguments"].append((TYPE.sub("", LIST.sub("", name)).strip(), text))
            else:
                sections["Options"].append((LIST.sub(r"<\1>", NUMBER_RANGE.sub(r"<\1>", name)), text))
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            with formatter.section("Examples"):
                for line in cleandoc(self.epilog).splitlines():
                    formatter.write(f"  {line}".rstrip() + "\n")
