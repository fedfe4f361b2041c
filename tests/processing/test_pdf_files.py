"""Pages of PDFs are images: measured without rendering, rendered one at a time, and named in errors."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from image_cases import saved, tiles_of
from internvlx_hf.processing import pdf_files
from internvlx_hf.processing.image_files import ImageAccess, is_undecoded
from internvlx_hf.processing.image_sources import PillowSource, image_size
from internvlx_hf.processing.pdf_files import MAX_PAGE_PIXELS, open_images
from pdf_cases import LOCKED, levels, pdf
from refusals import refused


@pytest.fixture
def scan(tmp_path) -> str:
    (tmp_path / "scan.pdf").write_bytes(pdf((72, 36), (36, 72), (48, 48)))
    return str(tmp_path / "scan.pdf")


def test_each_page_is_an_image_in_order(scan):
    pages = open_images(scan)
    assert [image_size(page) for page in pages] == [(150, 75), (75, 150), (100, 100)]
    assert all(map(is_undecoded, pages))
    decoded = [PillowSource(page, upright=True, convert_rgb=True).decoded().image for page in pages]
    assert [levels(image) for image in decoded] == [(1, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert all(map(is_undecoded, pages))  # their pixels are not kept
    assert torch.equal(tiles_of(pages), tiles_of(decoded))


@pytest.mark.parametrize(("pages", "expected"), [("2", [2]), ("2-3", [2, 3]), ("1-3", [1, 2, 3])])
def test_pages_are_selected_by_number(pages, expected, scan):
    found = open_images(f"{scan}#page={pages}")
    assert [page.address for page in found] == [f"{scan}#page={number}" for number in expected]


def test_an_image_is_one_image_and_has_no_pages(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.new("RGB", (9, 9))))
    assert [image.size for image in open_images(path)] == [(9, 9)]
    with refused("a.png' is not a PDF, so that it has no page 2"):
        open_images(f"{path}#page=2")


def test_a_large_page_is_rendered_with_fewer_pixels(tmp_path):
    (tmp_path / "poster.pdf").write_bytes(pdf((4000, 3000)).replace(b"4000", b"9999"))
    (page,) = open_images(tmp_path / "poster.pdf")
    assert 0.99 * MAX_PAGE_PIXELS < math.prod(page.size) < 1.01 * MAX_PAGE_PIXELS
    with refused("larger than max_pixels=1000"):
        open_images(tmp_path / "poster.pdf", ImageAccess(max_pixels=1000))


def test_pages_are_rendered_in_threads(scan):
    pages = open_images(scan) * 8
    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(lambda page: page.rendered(), pages))) == 24


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (pdf((9, 9), (9, 9)), "#page=3", "has 2 pages … pages from 1 to 2, not 3 to 3"),
        (pdf((9, 9)), "#page=0", "not 0 to 0"),
        (
            pdf((9, 9), (9, 9), (9, 9)),
            "",
            "has 3 pages … at most 2 at once. Select pages: … scan.pdf#page=1-2",
        ),
        (pdf((99, 99))[:-9], "", "scan.pdf' is truncated … a whole PDF"),
        (b"%PDF-1.7 nothing %%EOF", "", "scan.pdf' cannot be read as a PDF"),
        (LOCKED, "", "scan.pdf' needs a password"),
    ],
)
def test_a_pdf_that_cannot_be_read_is_named(content, suffix, message, tmp_path, monkeypatch):
    monkeypatch.setattr(pdf_files, "MAX_PAGES", 2)
    (tmp_path / "scan.pdf").write_bytes(content)
    with refused(message):
        open_images(f"{tmp_path}/scan.pdf{suffix}")


def test_without_pypdfium2_the_message_says_what_to_install(scan, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with refused("pip install pypdfium2"):
        open_images(scan)
