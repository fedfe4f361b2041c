"""The page as a Space serves it, to a browser and to clients that request more than the page."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

import numpy as np
import PIL.Image
import pytest
import requests

from internvlx_hf.chat import Session
from internvlx_hf.evaluation.answering import Answerer
from paths import HELPERS, ROOT
from tiny import LVTC, tiny_model, tiny_processor

OVERLAY, CHROMIUM = ROOT / "build/web", Path("/usr/bin/chromium")
SPACE = ROOT / "integrations/space"
MAX_BYTES = 20_000_000
TIMEOUT = 60
LONGEST = 20
pytestmark = [
    pytest.mark.slow,
    pytest.mark.any_transformers,
    pytest.mark.skipif(not (OVERLAY / ".installed").exists(), reason="needs build/web, which `make test` installs"),
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
    program = subprocess.Popen(
        [sys.executable, str(SPACE / "app.py")],
        env=with_overlay(MODEL=str(folder), HF_HUB_OFFLINE="1", **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = []
    for line in program.stdout:
        output.append(line)
        if line.startswith("Serving "):
            break
    else:
        raise AssertionError("".join(output))
    threading.Thread(target=output.extend, args=(program.stdout,), daemon=True).start()  # a full pipe would block it
    assert list(temporary.glob("internvlx-web-*"))
    yield f"http://127.0.0.1:{port}/"
    program.terminate()
    assert program.wait(TIMEOUT) == 0, "".join(output)
    assert not list(temporary.glob("internvlx-web-*"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium")
def test_a_visitor_sees_tiles_asks_compares_and_looks(url, answerer, photo):
    done = subprocess.run(
        [sys.executable, str(HELPERS / "browser_process.py"), url, photo],
        env=with_overlay(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    turn = Session(answerer, generation={"max_new_tokens": LONGEST}).ask(
        "What is in this image?", (PIL.Image.open(photo),)
    )
    assert found["title"] == "InternVL-X: Tiny"
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
    assert found["width on a phone"] == 390
    assert found["requests elsewhere"] == found["refused"] == []


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
        path = path.replace("UPLOAD", str(Path(upload(url, photo).json()[0]).parent))
    request = requests.Request("GET", url).prepare()
    request.url = url + path  # unchanged, with `..`
    response = requests.Session().send(request, timeout=TIMEOUT)
    assert response.status_code in (403, 404)
    assert "root:" not in response.text
    assert "import " not in response.text


def upload(url: str, path: str):
    with open(path, "rb") as file:
        return requests.post(url + "gradio_api/upload", files={"files": file}, timeout=TIMEOUT)


def test_uploads_can_be_fetched_and_are_limited(url, photo):
    sent = upload(url, photo)
    content = requests.get(f"{url}gradio_api/file={sent.json()[0]}", timeout=TIMEOUT).content
    assert content == Path(photo).read_bytes()
    for bound, path in ((2 * MAX_BYTES, "upload"), (MAX_BYTES + 10, "upload"), (1_000_001, "queue/join")):
        # the first and the last are refused by their Content-Length
        files = {"files": ("a.png", b"\0" * bound)}
        refused = requests.post(f"{url}gradio_api/{path}", files=files, timeout=TIMEOUT)
        assert refused.status_code == 413


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "named",
    [
        {"path": "/etc/passwd"},
        {"path": "/etc/passwd", "url": "https://example.org/a.png"},
        {"path": "https://example.org/a.png"},
        {"path": "http://localhost/a.png"},
    ],
)
def test_requests_can_only_name_uploads(url, named, place):
    message = show_tiles(url, named, place)
    assert message["success"] is False
    assert "root:" not in json.dumps(message)


def test_a_request_with_an_upload_is_answered(url, photo):
    message = show_tiles(url, {"path": upload(url, photo).json()[0], "url": "https://example.org/a.png"})
    assert "ix-card" in message["output"]["data"][0]


def show_tiles(url: str, file: dict, place: int = 0) -> dict:
    """The server's last message for a request for tiles, with `file` as one of its values."""
    config = requests.get(url + "config", timeout=TIMEOUT).json()
    ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    function = next(each for each in config["dependencies"] if each["outputs"] == [ids["tiles"]])
    values = [None, "edge", 4, 1, True, None]
    values[place] = file | {"meta": {"_type": "gradio.FileData"}}
    body = {"data": values, "fn_index": function["id"], "session_hash": uuid4().hex}
    requests.post(url + "gradio_api/queue/join", json=body, timeout=TIMEOUT).raise_for_status()
    return completed(url, body["session_hash"])


def completed(url: str, session: str) -> dict:
    """The last message of a session's only request."""
    with requests.get(
        url + "gradio_api/queue/data", params={"session_hash": session}, stream=True, timeout=TIMEOUT
    ) as lines:
        for line in lines.iter_lines():
            message = json.loads(line.removeprefix(b"data: ")) if line else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("the request was not completed")
