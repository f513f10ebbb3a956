"""The built site: every link inside leads somewhere, nothing is loaded from elsewhere, each question is one click away."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
QUESTIONS = sorted(path.stem for path in (ROOT / "docs" / "axes").glob("*.md") if path.stem != "index")
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}  # what a browser asks for by itself


class Page(HTMLParser):
    """The links of a page, what it loads, its anchors, and the order of what its article shows."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors, self.shown, self.inside = [], [], set(), [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.inside += tag == "article"
        if tag == "a" and found.get("href"):
            self.links.append((found["href"], bool(self.inside)))
        if self.inside and (tag in ("h1", "p", "pre") or found.get("class") == "cube"):
            self.shown.append("cube" if tag == "div" else tag)
        if tag in LOADS and found.get(LOADS[tag]) and found.get("rel") not in ("canonical", "index", "search", "next", "prev"):
            self.loads.append(found[LOADS[tag]])

    def handle_endtag(self, tag):
        self.inside -= tag == "article"


def outside(address):
    return bool(urlsplit(address).scheme or urlsplit(address).netloc) and not address.startswith("data:")


def target(site, page, address):
    """The file and the anchor that a link of a page leads to."""
    path, anchor = urldefrag(address)
    return ((site / page).parent / unquote(urlsplit(path).path)).resolve() if path else (site / page), unquote(anchor)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", str(folder / "doctrees")]
    done = subprocess.run([*command, "docs", str(folder / "html")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def broken(site, pages):
    for name, page in pages.items():
        for address, _ in page.links:
            if outside(address):
                continue
            file, anchor = target(site, name, address)
            there = pages.get(file.relative_to(site.resolve()).as_posix()) if file.is_relative_to(site.resolve()) else None
            if not file.is_file() or (anchor and there is not None and anchor not in there.anchors):
                yield f"{name}: {address}"


def test_every_link_inside_the_site_leads_somewhere(site, pages):
    assert len(pages) > 30
    assert list(broken(site, pages)) == []


def test_the_test_of_links_can_fail(site, pages):
    wrong = Page(
        '<article><a href="start.html#nowhere">a</a> <a href="missing.html">b</a> <a href="start.html">c</a></article>'
    )
    assert list(broken(site, pages | {"index.html": wrong})) == ["index.html: start.html#nowhere", "index.html: missing.html"]


def test_nothing_is_loaded_from_elsewhere(site, pages):
    assert [address for page in pages.values() for address in page.loads if outside(address)] == []
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")) == [], style


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_is_one_click_from_the_front_page(site, pages, question):
    """By a link in the text itself, not only in the side bar; the page begins with the answer, then the picture, then code."""
    clicked = {target(site, "index.html", address)[0] for address, in_text in pages["index.html"].links if in_text}
    assert (site / "axes" / f"{question}.html").resolve() in clicked
    assert list(dict.fromkeys(pages[f"axes/{question}.html"].shown))[:3] == ["h1", "p", "cube"]


def test_there_are_twelve_questions():
    assert len(QUESTIONS) == 12


@pytest.mark.parametrize(
    ("stem", "page"),  # the index holds the stems of words
    [
        ("channels_first", "axes/keras-axis"),
        ("batchnorm2d", "axes/per-dimension"),
        ("transform", "axes/transforms-normalize"),
        ("gamma", "axes/gamma-and-beta"),
    ],
)
def test_the_search_knows_the_words_of_other_libraries(site, stem, page):
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    found = index["terms"].get(stem, []), index["titleterms"].get(stem, [])
    numbers = {n for one in found for n in ([one] if isinstance(one, int) else one)}
    assert page in {index["docnames"][n] for n in numbers}
