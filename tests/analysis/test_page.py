import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from ddl_plugin.analysis.failures import Example, Face
from ddl_plugin.analysis.page import (
    Html,
    Section,
    check_page,
    definitions,
    element,
    figure,
    listing,
    note,
    page,
    paragraph,
    side_by_side,
    small,
    strip,
    strong,
    table,
    together,
    write_page,
)
from ddl_plugin.errors import UserError

EVIL = "<script>alert('x')</script> & \"more\""
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """The elements of a page, every one closed where it must be; text by element."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def image(value=90):
    return np.full((112, 112, 3), value, np.uint8)


@pytest.fixture
def drawing(tmp_path):
    path = tmp_path / "drawing.svg"
    path.write_text("<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    return path


def example(**changes):
    faces = (Face(image(), "probe", "a.jpg"), Face(None, "mate", "b.jpg"))
    return Example(**{"title": "pair 1", "faces": faces, "lines": ("0.12 < 0.31",), **changes})


def everything(drawing):
    blocks = [
        paragraph("text ", strong("strong")),
        note("careful"),
        listing(["one", "two"]),
        table("rates", ["set", "base", "DDL"], [["LFW", "99.1", together("99.3", small("1 of 10"))]]),
        side_by_side([figure(drawing, "what it shows", "Figure 1"), strip(example())]),
    ]
    return [Section("First", blocks, [Section("Inner", [paragraph("in")])]), Section("Second")]


def test_a_page_is_a_whole_document(drawing):
    text = page("Title", [("commit", "none")], everything(drawing))
    reader = Reader(text)
    assert text.startswith("<!DOCTYPE html>")
    assert reader.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in reader.all("meta")
    assert reader.texts["title"] == reader.texts["h1"] == ["Title"]
    assert (reader.texts["dt"], reader.texts["dd"]) == (["commit"], ["none"])
    assert reader.texts["h2"] == ["Contents", "First", "Second"]
    assert reader.texts["h3"] == ["Inner"]


def test_the_contents_lead_to_every_section(drawing):
    reader = Reader(page("Title", [], everything(drawing)))
    targets = [attributes["id"] for attributes in reader.all("section")]
    assert len(set(targets)) == len(targets) == 3
    links = [attributes["href"] for attributes in reader.all("a")]
    assert links == [f"#{target}" for target in targets]
    assert reader.texts["a"] == ["First", "Inner", "Second"]


def test_nothing_comes_from_elsewhere_and_nothing_runs(drawing):
    text = page("Title", [], everything(drawing))
    assert "http:" not in text
    assert "https:" not in text
    assert not re.search(r"url\(|@import|<link|<script|<iframe|\bon\w+=", text)
    reader = Reader(text)
    for _, attributes in reader.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    policy = next(
        a["content"] for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy


def test_every_text_is_escaped(drawing):
    faces = (Face(image(), EVIL, EVIL), Face(None, EVIL, EVIL))
    blocks = [
        paragraph(EVIL), note(EVIL), listing([EVIL]), definitions([(EVIL, EVIL)]), strong(EVIL), small(EVIL),
        table(EVIL, [EVIL, EVIL], [[EVIL, EVIL]]), figure(drawing, EVIL, EVIL),
        strip(Example(EVIL, faces, (EVIL,))), element("div", EVIL, title=EVIL),
    ]  # fmt: skip
    text = page(EVIL, [(EVIL, EVIL)], [Section(EVIL, blocks, [Section(EVIL)])])
    reader = Reader(text)
    assert "script" not in {tag for tag, _ in reader.elements}
    assert reader.all("img")[0]["alt"] == EVIL
    assert EVIL in reader.texts["h3"]
    for tag in (
        "title",
        "h1",
        "h2",
        "h3",
        "a",
        "p",
        "li",
        "dt",
        "dd",
        "strong",
        "small",
        "caption",
        "td",
        "b",
    ):
        assert EVIL in "".join(reader.texts[tag])


def test_markup_is_not_escaped_twice():
    assert (
        together("a < b", Html("<b>c</b>"), strong("d & e")) == "a &lt; b<b>c</b><strong>d &amp; e</strong>"
    )


def test_a_table_names_its_rows_columns_and_itself():
    reader = Reader(table("rates", ["set", "base"], [["LFW", "99.1"], ["CFP", "95"]]))
    scopes = [attributes["scope"] for attributes in reader.all("th")]
    assert scopes == ["col", "col", "row", "row"]
    assert reader.texts["th"] == ["set", "base", "LFW", "CFP"]
    assert reader.texts["td"] == ["99.1", "95"]
    assert reader.texts["caption"] == ["rates"]
    # It scrolls: the keyboard must reach it.
    (box,) = reader.all("div")
    assert (box["tabindex"], box["role"], box["aria-label"]) == ("0", "region", "rates")
    assert [a["class"] for a in reader.all("td")] == ["number", "number"]
    with pytest.raises(ValueError, match="2 headers, a row of 1 cells"):
        table("rates", ["set", "base"], [["LFW"]])


def test_images_are_inside_and_described(drawing, tmp_path):
    png = tmp_path / "a.png"
    cv2.imwrite(str(png), image())
    reader = Reader(together(figure(drawing, "a drawing", "one"), figure(png, "a photograph", "two")))
    first, second = reader.all("img")
    assert (first["alt"], second["alt"]) == ("a drawing", "a photograph")
    for attributes, path, media in ((first, drawing, "image/svg+xml"), (second, png, "image/png")):
        head, _, content = attributes["src"].partition(",")
        assert head == f"data:{media};base64"
        assert base64.b64decode(content) == path.read_bytes()
    assert reader.texts["figcaption"] == ["one", "two"]


def test_a_strip_shows_its_faces_and_says_where_one_is_missing():
    pixels = np.zeros((112, 112, 3), np.uint8)
    pixels[:, :56] = (220, 30, 40)
    faces = (Face(pixels, "probe", "a.jpg"), Face(None, "mate", "b.jpg"))
    reader = Reader(strip(example(faces=faces)))
    (shown,) = reader.all("img")
    assert (shown["alt"], shown["width"], shown["height"]) == ("probe: a.jpg", "112", "112")
    content = base64.b64decode(shown["src"].partition(",")[2])
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(decoded[:, 8:40].astype(int) - (220, 30, 40)).max() < 12
    (missing,) = [a for a in reader.all("div") if a.get("role") == "img"]
    assert missing["aria-label"] == "mate: b.jpg (no image)"
    assert {"probe", "mate"} == set(reader.texts["b"])
    assert "0.12 < 0.31" in reader.texts["div"]


def test_equal_arguments_give_equal_bytes(tmp_path, drawing):
    for name in ("a.html", "b.HTM"):
        write_page(tmp_path / name, "Title", [("a", "b")], everything(drawing))
    first, second = tmp_path / "a.html", tmp_path / "b.HTM"
    assert (
        first.read_bytes() == second.read_bytes() == page("Title", [("a", "b")], everything(drawing)).encode()
    )


def test_a_page_without_sections_or_facts_has_no_empty_lists():
    reader = Reader(page("Title", [], []))
    assert not {"nav", "ol", "dl", "section"} & {tag for tag, _ in reader.elements}


def test_other_suffixes_and_folders_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"report\.pdf: expected a page's suffix, one of \.html, \.htm, got '\.pdf'"
    ):
        check_page("report.pdf")
    with pytest.raises(UserError, match="expected a page's suffix"):
        write_page(tmp_path / "report", "Title", [], [])
    (tmp_path / "folder.html").mkdir()
    for function in (check_page, lambda path: write_page(path, "Title", [], [])):
        with pytest.raises(UserError, match="expected the name of a file to write, got a folder"):
            function(tmp_path / "folder.html")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"report\.html: cannot be written \(.*file is no folder\)"):
        check_page(tmp_path / "file" / "new" / "report.html")
    with pytest.raises(UserError, match="cannot be written"):
        write_page(tmp_path / "file" / "report.html", "Title", [], [])
    check_page(tmp_path / "new" / "folders" / "report.html")
    assert not (tmp_path / "new").exists()
