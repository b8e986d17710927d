"""What results have in common: they are tables, for Arrow, pandas and notebooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dino_path.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MOST_ROWS = 20  # of a table in a notebook
MOST_LETTERS = 60  # of a cell there


class Tabular(ABC):
    """A result that is a table too."""

    @abstractmethod
    def to_arrow(self) -> pa.Table:
        """The result as an Arrow table."""

    def to_pandas(self) -> pd.DataFrame:
        """The Arrow table as a pandas data frame.

        Raises:
            ConfigError: pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise ConfigError(
                "to_pandas()",
                "the package pandas is not installed.",
                "A data frame is made with it.",
                "Install it (uv pip install pandas), or use to_arrow().",
            )
        return self.to_arrow().to_pandas()

    def __repr__(self) -> str:
        return str(self)


class Listed(Tabular):
    """A result of which a notebook shows the first rows of its table."""

    def _caption(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the caption, and the first rows."""
        table = self.to_arrow()
        rows = [[str(value) for value in row.values()] for row in table.slice(0, MOST_ROWS).to_pylist()]
        left = f"<p>and {table.num_rows - MOST_ROWS:,} more rows</p>" if table.num_rows > MOST_ROWS else ""
        return f"<pre>{escape(self._caption())}</pre>{_html_table(table.column_names, rows)}{left}"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        short = (cell if len(cell) <= MOST_LETTERS else f"{cell[: MOST_LETTERS - 3]}..." for cell in cells)
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in short)}</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text: columns two blanks apart."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows))
    return "\n".join(line.rstrip() for line in lines)
