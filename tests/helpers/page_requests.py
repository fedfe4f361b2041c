"""Raw requests to the page of `internvlx web`, well-formed or not."""

import json
from pathlib import Path
from uuid import uuid4

import requests

TIMEOUT = 60
MARK = {"_type": "gradio.FileData"}


class Page:
    """A client of the page at `url`, with an address of its own as a proxy on this machine would give it."""

    def __init__(self, url: str, address: str = "192.0.2.1"):
        self.url, self.http = url, requests.Session()
        self.http.headers["X-Forwarded-For"] = address
        config = self.http.get(url + "config", timeout=TIMEOUT).json()
        self.parts = {part["id"]: part for part in config["components"]}
        self.ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        self.functions = [each for each in config["dependencies"] if self.ids["image"] in each["inputs"]]

    def values(self, function: dict) -> list:
        """The values of a function's inputs as the page first shows them."""
        return [self.parts[part]["props"].get("value") for part in function["inputs"]]

    def upload(self, path: str, name: str = "photo.png", field: str = "files"):
        return self.post("upload", files={field: (name, Path(path).read_bytes())})

    def post(self, path: str, **content):
        return self.http.post(f"{self.url}gradio_api/{path}", timeout=TIMEOUT, **content)

    def call(self, function: dict, values: list, **others) -> dict:
        """The server's last message for a call of a function of the page."""
        body = {"data": values, "fn_index": function["id"], "session_hash": uuid4().hex} | others
        joined = self.post("queue/join", json=body)
        return self.last_message(body["session_hash"]) if joined.ok else {"refused": joined.status_code}

    def last_message(self, session: str) -> dict:
        address = self.url + "gradio_api/queue/data"
        with self.http.get(address, params={"session_hash": session}, stream=True, timeout=TIMEOUT) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix(b"data: ")) if line else {}
                if message.get("msg") in ("process_completed", "unexpected_error", "close_stream"):
                    return message
        raise AssertionError("the request was not completed")

    def show_tiles(self, image, place: str = "image") -> dict:
        """Ask for tiles, with `image` in the place of one of the inputs."""
        function = next(each for each in self.functions if each["outputs"] == [self.ids["tiles"]])
        values = self.values(function)
        values[function["inputs"].index(self.ids[place])] = image
        return self.call(function, values)


def namings(path: str) -> list:
    """Values of a request that name a file: with and without Gradio's mark, nested, as a URL, and indirectly."""
    named = {"path": path}
    relative = "../" * 30 + path.lstrip("/")
    return [
        named,
        named | {"meta": MARK},
        named | {"meta": {}},
        named | {"meta": {"_type": "gradio.Other"}, "url": path, "orig_name": "photo.png"},
        named | {"meta": MARK, "url": "https://example.org/a.png"},
        named | {"is_stream": True},
        named | {"meta": MARK, "is_stream": True},
        *({"path": other} for other in (f"file://{path}", relative, path.replace("/", "//"), f"{path}/../{path}")),
        *({"path": other, "meta": MARK} for other in (f"file://{path}", relative, path.replace("/", "//"))),
        {"path": {"path": path}},
        {"path": [path]},
        {"url": path},
        {"url": f"file://{path}", "meta": MARK},
        [named],
        [[named | {"meta": MARK}]],
        {"image": named, "caption": None},
        {"value": named},
        {"path": None, "nested": named | {"meta": MARK}},
        path,
    ]
