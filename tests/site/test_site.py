"""The built site loads nothing from another host and has every public name. `make docs` builds it, then runs this."""

import os
import re
import runpy
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from paths import ROOT

SITE = Path(os.environ.get("SITE", ROOT / "build/site"))
PAGES = sorted(SITE.rglob("*.html"))
# what a browser fetches by itself; a link (`a`) waits for a click
LOADING = {"audio", "embed", "iframe", "img", "input", "object", "script", "source", "track", "video"}
LINKED = {"icon", "manifest", "modulepreload", "preconnect", "prefetch", "preload", "stylesheet"}


class Loaded(HTMLParser):
    """Collects the addresses that a page loads, and the anchors that it has."""

    def __init__(self, page: Path):
        super().__init__()
        self.addresses, self.anchors = [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        self.anchors.add(values.get("id"))
        if tag in LOADING:
            candidates = [values.get("src"), values.get("data"), values.get("poster")]
            candidates += [each.split()[0] for each in values.get("srcset", "").split(",") if each.strip()]
            self.addresses += filter(None, candidates)
        elif tag == "link" and LINKED & set(values.get("rel", "").split()):
            self.addresses.append(values["href"])


def test_pages_load_nothing_from_another_host():
    assert len(PAGES) > 20
    outside = {
        (str(page.relative_to(SITE)), address)
        for page in PAGES
        for address in Loaded(page).addresses
        if urlsplit(address).netloc or (urlsplit(address).scheme and not address.startswith("data:"))
    }
    assert outside == set()


def test_styles_load_nothing_from_another_host():
    styles = [*SITE.rglob("*.css"), *PAGES]
    loading = re.compile(r"(?:url\(\s*|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)")
    assert [(path.name, found) for path in styles for found in loading.findall(path.read_text(encoding="utf-8"))] == []


def test_pages_do_not_ask_for_the_repository_s_stars():
    assert [page for page in PAGES if 'data-md-component="source"' in page.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("module", runpy.run_path(str(ROOT / "docs/site_hooks.py"))["REFERENCE"])
def test_the_reference_has_every_public_name(module):
    anchors = Loaded(SITE / "reference" / module / "index.html").anchors
    missing = {name for name in import_module(module).__all__ if f"{module}.{name}" not in anchors}
    assert {name for name in missing if f"{module}.{name}.{name}" not in anchors} == set()
