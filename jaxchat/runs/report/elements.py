"""The parts of a page: tables, figures, the document around them. Everything is escaped here.

What a model or a file says reaches a page only through `words`. The document asks for nothing: its
style is in it, it has no script, and its policy would let none load or run.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterable, Sequence
from html import escape

from jaxchat.runs.report.text import clean

_NUMBER = re.compile(r"-|none|missing|[-+$]?\d\S*( points)?( \[[^\]]*\])?")
LONG = 36  # characters from which a column takes room of its own
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def words(text: str) -> str:
    """Text as HTML, in an element or an attribute."""
    return escape(clean(text), quote=True)


def table(label: str, rows: Sequence[Sequence[str]], *, total: bool = False) -> str:
    """A table that scrolls where it is too wide; the first row is its head.

    `label` tells a screen reader what it is. Columns of numbers are set to the right. `total`: the
    last row is a sum.
    """
    head, *body = rows
    kinds = [_kind([row[column] for row in body]) for column in range(len(head))]
    titles = "".join(
        f'<th scope="col"{kinds[i]}>{words(cell)}</th>' if cell else "<td></td>"
        for i, cell in enumerate(head)
    )
    lines = []
    for number, row in enumerate(body):
        last = ' class="total"' if total and number == len(body) - 1 else ""
        cells = "".join(f"<td{kinds[i]}>{_cell(row[i])}</td>" for i in range(1, len(row)))
        lines.append(f'<tr{last}><th scope="row">{words(row[0])}</th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{words(label)}"><table>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _kind(column: Sequence[str]) -> str:
    """The class of a column: n numbers, l long text."""
    if all(_NUMBER.fullmatch(cell) for cell in column):
        return ' class="n"'
    return ' class="l"' if max(map(len, column), default=0) > LONG else ""


def _cell(cell: str) -> str:
    """A value; its interval stands behind it more quietly."""
    value, bracket, interval = cell.partition(" [")
    if bracket and _NUMBER.fullmatch(cell):
        return f'{words(value)} <span class="ci">[{words(interval)}</span>'
    return words(cell)


def facts(rows: Iterable[tuple[str, str]], style: str = "facts") -> str:
    """Names and what they are."""
    items = "".join(f"<div><dt>{words(name)}</dt><dd>{words(v)}</dd></div>" for name, v in rows)
    return f'<dl class="{style}">{items}</dl>'


def section(title: str, *parts: str) -> str:
    """A section of the page; empty when nothing is in it."""
    body = "".join(part for part in parts if part)
    if not body:
        return ""
    key = slug(title)
    return f'<section id="{key}"><h2>{words(title)}</h2>{body}</section>'


def slug(title: str) -> str:
    """A name as it can stand in an id."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def paragraph(text: str, style: str = "note") -> str:
    """Plain text."""
    return f'<p class="{style}">{words(text)}</p>'


def code(text: str) -> str:
    """Lines as they are."""
    return f"<pre><code>{words(text)}</code></pre>"


def figure(caption: str, drawing: str, aside: str = "") -> str:
    """A plot under its caption; empty when there is nothing to draw."""
    if not drawing:
        return ""
    quiet = f" <span>{words(aside)}</span>" if aside else ""
    return f"<figure><figcaption>{words(caption)}{quiet}</figcaption>{drawing}</figure>"


def plots(figures: Iterable[str], style: str = "plots") -> str:
    """Plots side by side, as many as there is room for."""
    drawn = "".join(figures)
    return f'<div class="{style}">{drawn}</div>' if drawn else ""


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """(name, class that colours it) of what the plots have."""
    items = "".join(f'<li class="{style}">{words(name)}</li>' for name, style in entries)
    return f'<ul class="legend">{items}</ul>'


def document(title: str, eyebrow: str, lead: Iterable[str], sections: Iterable[str]) -> str:
    """The whole page: a head, links to the sections, the sections."""
    body = [section for section in sections if section]
    found = [re.match(r'<section id="([^"]*)"><h2>(.*?)</h2>', one) for one in body]
    links = "".join(f'<li><a href="#{m[1]}">{m[2]}</a></li>' for m in found if m)
    style = (importlib.resources.files("jaxchat.runs.report") / "page.css").read_text(
        encoding="utf-8"
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{words(title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            f'<header><p class="eyebrow">{words(eyebrow)}</p><h1>{words(title)}</h1>',
            *lead,
            f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>',
            "<main>",
            *body,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )
