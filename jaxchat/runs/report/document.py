"""The parts of a document, each as Markdown and as HTML, and the page around them.

What a model or a file says reaches HTML only through `words`, which escapes it. The page loads
nothing: its style is in it, it has no script, and its policy would let none load or run.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from jaxchat.inference.transcript import printable

Rows = list[tuple[str, ...]]  # a table, its head first

_NUMBER = re.compile(r"-|none|missing|[-+$]?\d\S*( points)?( \[[^\]]*\])?")
LONG = 36  # characters from which a column takes room of its own
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# They would show a text in another order than it has (Unicode Standard Annex 9).
_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))


class Block(NamedTuple):
    """A part of a section; what only one of the forms has is empty in the other."""

    markdown: str
    html: str


Sections = Mapping[str, Sequence[Block]]  # by title; one without content is left out
NOTHING = Block("", "")


def clean(text: str) -> str:
    """A model's or a file's words as text that every file can hold and no terminal obeys."""
    visible = printable(text).translate(dict.fromkeys(_BIDI, "\ufffd"))
    return visible.encode("utf-8", errors="replace").decode("utf-8")


def words(text: str) -> str:
    """Text as HTML, in an element or an attribute."""
    return escape(clean(text), quote=True)


def pixels(value: float) -> str:
    """A length or a place in a drawing, to a hundredth."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def tag(name: str, *inside: str, **attributes: str | float) -> str:
    """An element around HTML, or an empty one; `class_` stands for class, `text_anchor` for
    text-anchor, and so on."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        said = value if isinstance(value, str) else pixels(value)
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{said}"')
    return "".join([*parts, ">", *inside, f"</{name}>"] if inside else [*parts, "/>"])


def table(label: str, rows: Rows, *, total: bool = False) -> Block:
    """A table; the first row is its head. With `total` the last one is a sum.

    `label` describes it to a screen reader. On a page it scrolls where it is too wide, and columns
    of numbers are set to the right.
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
    html = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{words(label)}"><table>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    if total:
        rows = [*rows[:-1], tuple(f"**{cell}**" if cell else "" for cell in rows[-1])]
    return Block(_grid(rows), html)


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


def _grid(rows: Rows) -> str:
    """A Markdown table, aligned in the source too."""
    cells = [[clean(c).replace("\n", " ").replace("|", "\\|") for c in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def note(*texts: str, style: str = "note") -> Block:
    """Plain text; on a page all of it is one paragraph."""
    html = f'<p class="{style}">{words(" ".join(texts).replace("`", ""))}</p>'
    return Block("\n\n".join(texts), html)


def heading(text: str) -> Block:
    """A heading within a section."""
    return Block(f"### {text}", f"<h3>{words(text)}</h3>")


def code(text: str, language: str = "text") -> Block:
    """Lines as they are; a model's words cannot close their block."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    markdown = f"{fence}{language}\n{clean(text)}\n{fence}"
    return Block(markdown, f"<pre><code>{words(text)}</code></pre>")


def facts(rows: Iterable[tuple[str, str]], style: str = "facts") -> Block:
    """Names and what they are."""
    rows = list(rows)
    items = "".join(f"<div><dt>{words(name)}</dt><dd>{words(v)}</dd></div>" for name, v in rows)
    markdown = "\n".join(f"- {name}: {value}" for name, value in rows)
    return Block(markdown, f'<dl class="{style}">{items}</dl>')


def details(title: str, html: str, *, opened: bool = False) -> str:
    """What a page shows when its title is clicked."""
    return f"<details{' open' * opened}><summary>{words(title)}</summary>{html}</details>"


def pair(*blocks: Block) -> Block:
    """Blocks that a page shows side by side."""
    html = "".join(block.html for block in blocks)
    return Block(_joined(b.markdown for b in blocks), f'<div class="pair">{html}</div>')


def slug(title: str) -> str:
    """A name as it can stand in an id."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def figure(caption: str, drawing: str, aside: str = "") -> str:
    """A plot under its caption; empty when there is nothing to draw."""
    if not drawing:
        return ""
    quiet = f" <span>{words(aside)}</span>" if aside else ""
    return f"<figure><figcaption>{words(caption)}{quiet}</figcaption>{drawing}</figure>"


def plots(figures: Iterable[str], style: str = "plots") -> Block:
    """Plots side by side, as many as there is room for; on a page alone."""
    drawn = "".join(figures)
    return Block("", f'<div class="{style}">{drawn}</div>') if drawn else NOTHING


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """(name, class that colours it) of what the plots have."""
    items = "".join(f'<li class="{style}">{words(name)}</li>' for name, style in entries)
    return f'<ul class="legend">{items}</ul>'


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def to_markdown(title: str, lead: Iterable[Block], sections: Sections) -> str:
    """The whole document as Markdown."""
    parts = [f"# {title}", *(block.markdown for block in lead)]
    for name, blocks in sections.items():
        if body := _joined(block.markdown for block in blocks):
            parts += [f"## {name}", body]
    return _joined(parts) + "\n"


def to_page(title: str, eyebrow: str, lead: Iterable[Block], sections: Sections) -> str:
    """The whole page: a head, links to the sections, the sections."""
    bodies = {name: "".join(block.html for block in blocks) for name, blocks in sections.items()}
    bodies = {name: body for name, body in bodies.items() if body}
    links = "".join(f'<li><a href="#{slug(name)}">{words(name)}</a></li>' for name in bodies)
    style = importlib.resources.files("jaxchat.runs.report").joinpath("page.css").read_text("utf-8")
    lines = [
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
        *(block.html for block in lead),
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>',
        "<main>",
        *(
            f'<section id="{slug(name)}"><h2>{words(name)}</h2>{body}</section>'
            for name, body in bodies.items()
        ),
        "</main>",
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(lines)
