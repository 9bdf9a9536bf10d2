"""A page for people: one HTML file with its figures inside, that needs no network, no script and no other file.

Every function here returns `Html`, markup that is used as it is; a plain `str` given to any of them is text and is
escaped. Equal calls give equal bytes.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from pathlib import Path
from string import Template

import cv2

from ddl_plugin.analysis.failures import Example, Face
from ddl_plugin.errors import UserError
from ddl_plugin.files import write_text

SUFFIXES = (".html", ".htm")

_MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}
_QUALITY = 95  # of a face's JPEG: a fifth of a PNG, and nothing of it can be seen
_ENDS_A_LINE = (
    "p",
    "li",
    "tr",
    "figure",
    "section",
    "table",
    "thead",
    "dd",
    "h1",
    "h2",
    "h3",
    "h4",
)  # of the file
_DEEPEST = 4  # h4: headings below it would look like text


class Html(str):
    """Markup: never escaped again."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it; its blocks come before its own sections. listed: in the contents."""

    title: str
    blocks: Sequence[Html] = ()
    sections: Sequence[Section] = ()
    listed: bool = True


def check_page(path: str | os.PathLike) -> Path:
    """`path`, when a page can be named so; asked before long work, so that no work is lost."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path}: expected a page's suffix, one of {', '.join(SUFFIXES)}, got {path.suffix!r}"
        )
    if path.is_dir():
        raise UserError(f"{path}: expected the name of a file to write, got a folder")
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        raise UserError(f"{path}: cannot be written ({folder} is no folder)")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{path}: cannot be written ({folder} is not writable)")
    return path


def write_page(
    path: str | os.PathLike, title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]
) -> None:
    """Write `page` whole or not at all. `UserError` for another suffix and where it cannot be written."""
    write_text(check_page(path), page(title, facts, sections))


def page(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> Html:
    """The whole document: title, facts, contents, sections.

    facts: (name, value) rows under the title. No date and no machine is put in: equal arguments give equal pages.
    """
    numbers = count(1)
    made = [_section(section, 2, numbers) for section in sections]
    contents = Html("")
    if made:
        contents = element("nav", element("h2", "Contents"), _contents(made), aria_label="Contents")
    body = together(
        element("header", element("h1", title), definitions(facts)),
        contents,
        element("main", *(body for _, body in made)),
    )
    return Html(_PAGE.substitute(title=markup(title), style=_STYLE, body=body))


def element(tag: str, *content: str, **attributes: object) -> Html:
    """<tag name='value'>content</tag>: `class_` is class, aria_label is aria-label; a tag of its own has no content."""
    names = "".join(
        f" {name.rstrip('_').replace('_', '-')}='{escape(str(value))}'" for name, value in attributes.items()
    )
    if tag == "img":
        return Html(f"<img{names}>")
    end = "\n" if tag in _ENDS_A_LINE else ""
    return Html(f"<{tag}{names}>{together(*content)}</{tag}>{end}")


def markup(text: str) -> Html:
    """`text` escaped, or as it is where it is `Html`."""
    return text if isinstance(text, Html) else Html(escape(str(text)))


def together(*parts: str) -> Html:
    """Text and markup, one after the other."""
    return Html("".join(markup(part) for part in parts))


def strong(*parts: str) -> Html:
    return element("strong", *parts)


def code(text: str) -> Html:
    return element("code", text)


def small(*parts: str) -> Html:
    """Beside a figure in a table: what it is to be read with."""
    return element("small", *parts)


def paragraph(*parts: str) -> Html:
    return element("p", *parts)


def note(*parts: str) -> Html:
    """A paragraph that must not be missed."""
    return element("p", strong("Note. "), *parts, class_="note")


def listing(items: Iterable[str]) -> Html:
    return element("ul", *(element("li", item) for item in items))


def definitions(rows: Sequence[tuple[str, str]]) -> Html:
    """Names with their values; nothing for no row."""
    if not rows:
        return Html("")
    return element("dl", *(together(element("dt", name), element("dd", value)) for name, value in rows))


def table(
    caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1
) -> Html:
    """A table whose first column names the rows; it scrolls by itself where the window is narrow.

    text_columns: the columns, from the left, that are text; the others are figures and stand to the right.
    """

    def cell(tag: str, value: str, column: int, **attributes: str) -> Html:
        return element(tag, value, class_="text" if column < text_columns else "number", **attributes)

    lines = []
    for row_of_cells in rows:
        first, *others = row_of_cells
        if len(row_of_cells) != len(headers):
            raise ValueError(f"table {caption!r}: {len(headers)} headers, a row of {len(row_of_cells)} cells")
        cells = [cell("td", value, column) for column, value in enumerate(others, start=1)]
        lines.append(element("tr", cell("th", first, 0, scope="row"), *cells))
    head = [cell("th", header, column, scope="col") for column, header in enumerate(headers)]
    inside = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *lines),
    )
    # A region that scrolls must be reachable without a mouse.
    return element("div", inside, class_="table", role="region", tabindex=0, aria_label=caption)


def figure(path: str | os.PathLike, alt: str, caption: str) -> Html:
    """A figure's file (.svg or .png), inside the page. alt: what it shows, for who cannot see it."""
    path = Path(path)
    source = _data(_MEDIA[path.suffix.lower()], path.read_bytes())
    return element("figure", element("img", src=source, alt=alt), element("figcaption", caption))


def side_by_side(blocks: Iterable[Html]) -> Html:
    """Blocks beside each other, as many as the window's width takes."""
    return element("div", *blocks, class_="row")


def strip(example: Example) -> Html:
    """An example: its faces side by side with what each one is, and what was said of them below."""
    faces = [
        element("div", _image(face), element("div", element("b", face.role), face.name), class_="face")
        for face in example.faces
    ]
    lines = [element("div", strong(example.title)), *(element("div", line) for line in example.lines)]
    kind = "strip wide" if len(faces) > 2 else "strip"
    return element(
        "figure", element("div", *faces, class_="faces"), element("figcaption", *lines), class_=kind
    )


def _section(section: Section, level: int, numbers: Iterator[int]) -> tuple[Html, Html]:
    """Its entry of the contents ('' for none), and its body."""
    name = f"s{next(numbers)}"
    inner = [_section(part, level + 1, numbers) for part in section.sections]
    heading = element(f"h{min(level, _DEEPEST)}", section.title)
    body = element("section", heading, *section.blocks, *(body for _, body in inner), id=name)
    entry = together(element("a", section.title, href=f"#{name}"), _contents(inner))
    return entry if section.listed else Html(""), body


def _contents(made: Sequence[tuple[Html, Html]]) -> Html:
    entries = [element("li", entry) for entry, _ in made if entry]
    return element("ol", *entries) if entries else Html("")


def _image(face: Face) -> Html:
    alt = f"{face.role}: {face.name}"
    if face.image is None:
        return element("div", "no image", class_="missing", role="img", aria_label=f"{alt} (no image)")
    height, width = face.image.shape[:2]
    quality = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    content = cv2.imencode(".jpg", face.image[..., ::-1], quality)[1].tobytes()
    return element("img", src=_data("image/jpeg", content), width=width, height=height, alt=alt)


def _data(media: str, content: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


# The policy forbids scripts and anything from elsewhere, whatever a name in the results contains.
_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style</style>
</head>
<body>
$body
</body>
</html>
""")

_STYLE = """\
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 64rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 2px solid #1f4e79; }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h4 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
h2, h3, h4 { overflow-wrap: anywhere; }
p, li, dd { max-width: 46rem; }
a { color: #1f4e79; }
a:focus-visible, .table:focus-visible { outline: 2px solid #d55e00; outline-offset: 2px; }
code { font: .85em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
small { display: block; color: #555; font-size: .8em; white-space: nowrap; }
nav { margin: 1.5rem 0; padding: .75rem 1rem; background: #f3f5f7; border-radius: 4px; }
nav h2 { margin: 0; padding: 0; border: 0; font-size: 1rem; }
nav ol { margin: .25rem 0; padding-left: 1.5rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem; margin: 0 0 1rem; }
dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
.note { padding: .6rem .9rem; border-left: 4px solid #d55e00; background: #fdf3ec; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .35rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; vertical-align: top; }
th + th, td { padding-left: .8rem; }
thead th { border-bottom: 1px solid #1a1a1a; vertical-align: bottom; overflow-wrap: anywhere; min-width: 6rem; }
tbody tr + tr > * { border-top: 1px solid #e2e5e8; }
td.number { white-space: nowrap; }
.text { text-align: left; }
.text small { white-space: normal; }
tbody th { font-weight: 400; }
figure { margin: 1rem 0; max-width: 100%; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: #444; max-width: 46rem; margin-top: .35rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
.row > figure { margin: .5rem 0; }
.row > figure:not(.strip) { flex: 0 1 27rem; }
.row > figure:not(.strip) img { width: 27rem; }
.strip { padding: .6rem; border: 1px solid #d5dade; border-radius: 4px; width: 16.5rem; }
.strip.wide { width: 24rem; }
.faces { display: flex; gap: .5rem; }
.face { width: 7rem; flex: 1 1 0; min-width: 0; font-size: .75rem; line-height: 1.3; overflow-wrap: anywhere; }
.face img, .missing { width: 100%; aspect-ratio: 1; }
.face b { display: block; margin-top: .25rem; }
.missing { display: grid; place-items: center; background: #e6e6e6; color: #555; }
@media (max-width: 40rem) { dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: .4rem; } }
@media print {
  @page { margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  a { color: inherit; text-decoration: none; }
  nav, .note { background: none; border: 1px solid #bbb; }
  h2, h3, h4 { break-after: avoid; }
  figure, tr, .note, .table { break-inside: avoid; }
  thead { display: table-header-group; }
  .table { overflow: visible; }
}
"""
