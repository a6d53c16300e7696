"""The pieces of a report page: style, tables, and the file that needs no network."""

from html import escape
from pathlib import Path
from typing import Any

import altair as alt

from hardware.documents import write_text

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;color:#222;
background:#fff;overflow-wrap:break-word}
table{border-collapse:collapse;margin:.6rem 0 1.4rem;display:block;overflow-x:auto}
td,th{padding:.25rem .8rem;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}
.number{text-align:right;white-space:nowrap}h1{margin-bottom:0}.note{color:#595959;font-size:13px}
td:nth-child(n+3):not(.number){min-width:13em}#vis.vega-embed{display:block;overflow-x:auto}
"""
HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'
NUMBER_STARTS = tuple("0123456789$+-")


def write(path: Path, charts: list[Any], summary: str, name: str) -> None:
    """Write text and charts, one below the other, as one HTML file."""
    drawn = alt.vconcat(*charts).resolve_scale(color="independent", shape="independent")
    page = drawn.to_html(inline=True, embed_options={"actions": False})
    head = f"{HEAD}<title>Apportion: {escape(name)}</title><style>{STYLE}</style>"
    page = _insert(page, head, mark="</head>")
    write_text(path, _insert(page, summary, mark="<body>", behind=True))


def _insert(page: str, text: str, mark: str, behind: bool = False) -> str:
    """Insert text at the last occurrence of a mark: the inlined scripts may hold earlier ones."""
    head, found, tail = page.rpartition(mark)
    return f"{head}{found}{text}{tail}" if behind else f"{head}{text}{found}{tail}"


def table(rows: list[list[str]]) -> str:
    """A table whose first row is its head; columns of numbers are set to the right."""
    head, *body = rows
    numeric = [i > 0 and _is_numeric([row[i] for row in body]) for i in range(len(head))]
    lines = [_row("th", head, numeric), *(_row("td", row, numeric) for row in body)]
    return f"<table>{''.join(lines)}</table>"


def _is_numeric(cells: list[str]) -> bool:
    return all(cell.startswith(NUMBER_STARTS) and len(cell) < 30 for cell in cells if cell)


def _row(tag: str, cells: list[str], numeric: list[bool]) -> str:
    kinds = (" class=number" if right else "" for right in numeric)
    filled = (f"<{tag}{k}>{escape(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True))
    return f"<tr>{''.join(filled)}</tr>"
