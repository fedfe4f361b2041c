"""The page as a Space serves it, to a browser and to clients that request more than the page."""

import json
import os
import re
import signal
import socket
import threading
from collections import Counter
from pathlib import Path

import PIL.Image
import pytest
import requests

import forked
from image_cases import random_image
from internvlx_hf.chat import Session
from internvlx_hf.evaluation.answering import Answerer
from internvlx_hf.processing.pdf_files import open_images
from page_requests import MARK, TIMEOUT, Fuzzer, Page, namings
from paths import HELPERS, ROOT
from pdf_cases import pdf
from tiny import LVTC, tiny_model, tiny_processor

OVERLAY, CHROMIUM = ROOT / "build/web", Path("/usr/bin/chromium")
SPACE = ROOT / "integrations/space"
MAX_BYTES = 20_000_000
CANARY = "canary-of-the-server"
LONGEST = 20
pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.any_transformers,
    pytest.mark.skipif(
        not (OVERLAY / ".installed").exists(), reason="needs build/web, which `make test-integration` installs"
    ),
]


def with_overlay(**variables: str) -> dict[str, str]:
    paths = [str(OVERLAY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | variables


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    model = tiny_model(**LVTC)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return Answerer(model, tiny_processor(model.config))


@pytest.fixture(scope="module")
def url(answerer, tmp_path_factory):
    """The page's address. At the end, the program stops as in a Space and leaves no files."""
    folder, temporary = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("temporary")
    answerer.model.save_pretrained(folder)
    answerer.processor.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": port, "TMPDIR": str(temporary)}
    variables["OPTIONS"] = f"--max-new-tokens {LONGEST} --name Tiny"
    os.mkfifo(pipe := folder / "pipe")
    files = [Path(os.devnull), pipe, pipe]
    program = forked.Program(
        (SPACE / "app.py",), files, with_overlay(MODEL=str(folder), HF_HUB_OFFLINE="1", **variables)
    )
    output, printed = [], pipe.open()
    for line in printed:
        output.append(line)
        if line.startswith("Serving "):
            break
    else:
        raise AssertionError("".join(output))
    threading.Thread(target=output.extend, args=(printed,), daemon=True).start()  # a full pipe would block it
    assert list(temporary.glob("internvlx-web-*"))
    yield f"http://127.0.0.1:{port}/"
    os.kill(program.id, signal.SIGTERM)
    assert program.wait(TIMEOUT) == 0, "".join(output)
    assert not list(temporary.glob("internvlx-web-*"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    random_image(90, 40).save(path)
    return str(path)


@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium")
def test_a_visitor_sees_tiles_asks_compares_and_looks(url, answerer, photo, tmp_path):
    (tmp_path / "scan.pdf").write_bytes(pdf((72, 72), (90, 36)))
    done = forked.python(HELPERS / "browser_process.py", url, photo, tmp_path / "scan.pdf", env=with_overlay())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    turn = Session(answerer, generation={"max_new_tokens": LONGEST}).ask(
        "What is in this image?", (PIL.Image.open(photo),)
    )
    assert found["title"] == "InternVL-X: Tiny"
    assert found["heading"] == "Ask about an image"
    assert "The image has 640 × 480 pixels." in found["sample"]
    assert not re.search(r"first token after 0(\.0+)? s", found["took"])
    assert [card.split()[0] for card in found["cards"]] == ["ratio", "area", "edge"]
    assert f"{turn.tiles} (" in found["cards"][2]
    assert "in use" in found["cards"][2]
    assert "first token, about" in found["cards"][2]
    assert found["took"].startswith(f"edge, at most 6 tiles: {turn.tiles} tiles, {turn.tokens} visual tokens")
    assert found["answer"].split() == turn.answer.split()
    assert found["states"] > 2
    assert "<img>" in found["error"]
    assert "seconds to the first token" in found["comparison"]
    assert all(found["compared"])
    assert found["second page"] == [188, 75, 0, 0, 254]  # Pillow writes PDFs as JPEGs
    second = Session(answerer, generation={"max_new_tokens": LONGEST}).ask(
        "What is in this image?", (open_images(tmp_path / "scan.pdf")[1],)
    )
    assert found["answer about it"].split() == second.answer.split()
    assert found["width on a phone"] == 390
    assert found["requests elsewhere"] == found["refused"] == []
    assert found["hostile text"].startswith(
        "<IMG SRC=http://127.0.0.1:9/a.png><details><b>x</b></details> $$\\frac{1}{2}$$ [a]"
    )
    assert found["hostile text"].endswith("${1+1} {{1}} &amp;")
    assert found["blocked"] == ["img-src", "http://127.0.0.1:9/a.png"]


@pytest.mark.parametrize(
    "path",
    [
        *("gradio_api/file=/etc/passwd", "gradio_api/file=%2Fetc%2Fpasswd", "gradio_api/file=//etc/passwd"),
        *("gradio_api/file=UPLOAD/../../../../../../etc/passwd", "gradio_api/file=https://example.org/"),
        *("gradio_api/proxy=https://huggingface.co/", "gradio_api/run/predict", "gradio_api/vibe-code/"),
        *(
            "static/%2e%2e/%2e%2e/%2e%2e/__init__.py",
            "assets/../../../__init__.py",
            "monitoring/summary",
            "file=/etc/passwd",
        ),
    ],
)
def test_only_the_page_can_be_fetched(url, photo, path):
    if "UPLOAD" in path:
        path = path.replace("UPLOAD", str(Path(Page(url).upload(photo).json()[0]).parent))
    request = requests.Request("GET", url).prepare()
    request.url = url + path  # unchanged, with `..`
    response = requests.Session().send(request, timeout=TIMEOUT)
    assert response.status_code in (403, 404)
    assert "root:" not in response.text
    assert "import " not in response.text


def test_uploads_can_be_fetched_and_are_limited(url, photo):
    page = Page(url)
    content = requests.get(f"{url}gradio_api/file={page.upload(photo).json()[0]}", timeout=TIMEOUT).content
    assert content == Path(photo).read_bytes()
    for bound, path in ((2 * MAX_BYTES, "upload"), (MAX_BYTES + 10, "upload"), (1_000_001, "queue/join")):
        # the first and the last are refused by their Content-Length
        assert page.post(path, files={"files": ("a.png", b"\0" * bound)}).status_code == 413


def test_a_client_who_uploads_too_much_is_told_when_it_may_again_and_others_are_served(url, photo):
    greedy, other = Page(url, "192.0.2.2"), Page(url, "192.0.2.3")
    sent = [greedy.post("upload", files={"files": ("a.png", bytes([i]) * 19_900_000)}) for i in range(13)]
    assert [each.status_code for each in sent] == [200] * 10 + [429] * 3
    minutes = int(re.search(r"expected at most 200,000,000\. Try again in (\d+) minutes\.", sent[-1].text)[1])
    assert 55 <= minutes <= 60
    assert "ix-card" in other.show_tiles({"path": other.upload(photo).json()[0]})["output"]["data"][0]


@pytest.fixture
def canaries(tmp_path) -> list[Path]:
    """A picture, a text and a PDF that no visitor has uploaded."""
    PIL.Image.new("RGB", (123, 45), "red").save(tmp_path / "private.png")
    (tmp_path / "private.txt").write_text(CANARY)
    (tmp_path / "private.pdf").write_bytes(pdf((72, 72)))
    return [tmp_path / "private.png", tmp_path / "private.txt", tmp_path / "private.pdf"]


def shows_canary(answer: str) -> bool:
    return CANARY in answer or "page-1.png" in answer or re.search(r"123\s*[x×]\s*45\b", answer) is not None


def test_no_request_opens_a_file_of_the_server_or_learns_whether_there_is_one(url, photo, canaries):
    page = Page(url)
    page.upload(photo)
    missing = canaries[0].parent / "nowhere"
    for canary in canaries:
        pairs = list(zip(namings(str(canary)), namings(str(missing / canary.name)), strict=True))
        for there, not_there in (
            pairs if canary == canaries[0] else pairs[:2] + pairs[-1:]
        ):  # a suffix changes no naming
            for function in page.functions:
                answers = [page.call(function, filled(page, function, value)) for value in (there, not_there)]
                outputs = [json.dumps(each.get("output", each), ensure_ascii=False) for each in answers]
                assert not shows_canary(outputs[0]), there
                assert "ix-card" not in outputs[0], there
                assert without_folder(outputs[0], canary.parent) == without_folder(outputs[1], missing), there


def filled(page: Page, function: dict, image) -> list:
    values = page.values(function)
    return [image if part in page.files else value for part, value in zip(function["inputs"], values, strict=True)]


def without_folder(answer: str, folder: Path) -> str:
    """An answer without the words of its request and without times."""
    return re.sub(r"\d+\.\d+(e-?\d+)?", "", answer.replace(str(folder), ""))


@pytest.mark.parametrize("place", ["image", "slicing"])
@pytest.mark.parametrize("address", ["https://example.org/a.png", "http://localhost/a.png"])
@pytest.mark.parametrize("meta", [{}, {"meta": MARK}])
def test_requests_cannot_name_other_hosts(url, address, place, meta):
    assert Page(url).show_tiles({"path": address} | meta, place)["success"] is False


def test_a_request_with_an_upload_is_answered(url, photo):
    page = Page(url)
    for more in ({}, {"meta": MARK, "url": "https://example.org/a.png"}):
        message = page.show_tiles({"path": page.upload(photo).json()[0]} | more)
        assert "ix-card" in message["output"]["data"][0]


def test_a_page_of_a_pdf_is_an_upload_of_the_visitor(url, tmp_path):
    (tmp_path / "scan.pdf").write_bytes(pdf((72, 72), (90, 36)))
    page = Page(url, "192.0.2.5")
    path = page.upload(str(tmp_path / "scan.pdf"), "scan.pdf").json()[0]
    (drawn,) = page.draw_page({"path": path, "meta": MARK}, 2)["output"]["data"]
    assert "188×75" in page.show_tiles(drawn)["output"]["data"][0].replace(" ", "")
    error = page.draw_page({"path": path, "meta": MARK}, 3)["output"]["error"]
    assert "&#x27;scan.pdf&#x27; has 2 pages, expected pages from 1 to 2" in error


def test_every_answer_restricts_what_a_browser_loads(url):
    for path in ("", "config", "nowhere", "gradio_api/file=/etc/passwd"):
        policy = requests.get(url + path, timeout=TIMEOUT).headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "img-src 'self' data: blob:" in policy.split("; ")


@pytest.mark.fuzz
def test_hostile_requests_reach_no_file_and_leave_the_server_alive(url, photo, canaries):
    page = Page(url, "192.0.2.4")
    upload = page.upload(photo).json()[0]
    fuzzer = Fuzzer(page, [*map(str, canaries), "/etc/passwd"], upload, seed=0)
    statuses = Counter()
    for i in range(300):
        answer = fuzzer.send()
        statuses[answer[:3]] += 1
        assert not shows_canary(answer), (i, answer)
        assert "root:" not in answer, (i, answer)
        assert int(answer[:3]) < 500, (i, answer)
    assert len(statuses) > 3, statuses
    assert "ix-card" in page.show_tiles({"path": upload})["output"]["data"][0]
