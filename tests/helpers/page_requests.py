"""Raw requests to the page of `internvlx web`, well-formed or not."""

import json
import random
from pathlib import Path
from uuid import uuid4

import requests

TIMEOUT = 60
MARK = {"_type": "gradio.FileData"}


class Page:
    """A client of the page at `url`, with an address of its own as a proxy on this machine would give it."""

    def __init__(self, url: str, address: str = "192.0.2.1"):
        self.url, self.http = url, requests.Session()
        self.http.headers.update({"X-Forwarded-For": address, "Connection": "close"})
        config = self.http.get(url + "config", timeout=TIMEOUT).json()
        self.parts = {part["id"]: part for part in config["components"]}
        self.ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        self.files = {self.ids["image"], self.ids["pdf"]}
        self.functions = [each for each in config["dependencies"] if self.files & set(each["inputs"])]

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
        return self.draw("tiles", image, place)

    def draw_page(self, pdf, number) -> dict:
        """Ask for a page of a PDF."""
        return self.draw("image", pdf, "pdf", number)

    def draw(self, output: str, file, place: str, *others) -> dict:
        function = next(each for each in self.functions if each["outputs"] == [self.ids[output]])
        values = self.values(function)
        start = function["inputs"].index(self.ids[place])
        values[start : start + 1 + len(others)] = [file, *others]
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


class Fuzzer:
    """Hostile requests with a fixed seed.

    Args:
        paths: files of the server that the requests try to reach.
        upload: a file that a request may name.
    """

    def __init__(self, page: Page, paths: list[str], upload: str, seed: int):
        self.page, self.random = page, random.Random(seed)
        self.values: list = [
            *(value for path in paths for value in namings(path)),
            *(None, True, -1, 2**70, 1e308, "", "\0", "\ud800", "x" * 20_000, [], {}, [None], {"path": None}),
            *({"path": "\ud800"}, {"path": "\0"}, {"path": "a" * 5000}, {"path": upload}, {"path": 3, "meta": MARK}),
            *(
                {"meta": None, "path": upload},
                {"path": upload + "\0.png"},
                {"path": upload + "/.."},
                nested(300),
            ),
            *({"__type__": "update", "value": {"path": path}} for path in paths),
        ]
        self.addresses = [
            *(
                "info",
                "queue/data",
                "upload_progress",
                "heartbeat/x",
                "call/predict",
                "call/show_tiles",
                "run/predict",
            ),
            *(
                "api/predict",
                "queue/join/",
                "component_server",
                "reset",
                "cancel",
                "proxy=https://example.org",
                "stream/x",
            ),
            *(
                "dev/reload",
                "login_check",
                "user",
                "app_id",
                "custom_component/x/y/z",
                "deep_link",
                "process_recording",
            ),
            *(
                f"file={start}{path}"
                for path in paths
                for start in ("", "file://", "/", "%2F", "../../", upload + "/../../..")
            ),
        ]

    def send(self) -> str:
        """Sends a request. Returns: its status and its answer."""
        kind = self.random.choice((self.call, self.call, self.call, self.malformed, self.fetch, self.send_file))
        return kind()

    def call(self) -> str:
        function = self.random.choice(self.page.functions)
        values = self.page.values(function)
        for _ in range(self.random.choice((1, 1, 2, len(values)))):
            values[self.random.randrange(len(values))] = self.value()
        others = {
            name: self.value()
            for name in ("event_data", "trigger_id", "simple_format", "batched", "event_id")
            if self.random.random() < 0.1
        }
        return self.joined({"data": values, "fn_index": function["id"]} | others)

    def malformed(self) -> str:
        body: dict = {"data": self.page.values(self.page.functions[0]), "fn_index": self.random.randrange(-2, 12)}
        body[self.random.choice(("data", "fn_index", "fn", "extra"))] = self.value()
        text = json.dumps(body).encode()
        half = text[: self.random.randrange(len(text))] + self.random.randbytes(4)
        content = self.random.choice((text, text, half, b"[" * 50_000, text.replace(b"null", b"NaN"), b"null"))
        return self.answer(self.page.post("queue/join", data=content, headers={"Content-Type": "application/json"}))

    def fetch(self) -> str:
        address = self.random.choice(self.addresses)
        value = self.value()
        if self.random.random() < 0.5:
            return self.answer(
                self.page.post(address, data=json.dumps({"data": [value], "session_hash": "x", "event_id": "y"}))
            )
        request = requests.Request("GET", self.page.url).prepare()
        request.url = f"{self.page.url}gradio_api/{address}"  # unchanged, with `..`
        response = self.page.http.send(request, timeout=TIMEOUT, stream=True)
        # streams of events do not end
        return (
            f"{response.status_code} "
            if "event-stream" in response.headers.get("content-type", "")
            else self.answer(response)
        )

    def send_file(self) -> str:
        names = (
            "../../a.png",
            "/etc/passwd",
            "\0.png",
            "a" * 3000,
            "",
            "con.png",
            "a.svg",
            "\ud800".encode("utf-8", "replace").decode(),
        )
        file = (self.random.choice(names), self.random.randbytes(self.random.randrange(3000)))
        field = self.random.choice(("files", "files", "other", ""))
        headers = {"Content-Type": "multipart/form-data; boundary=x"} if self.random.random() < 0.3 else {}
        sent = self.page.post("upload", files={field: file}, headers=headers)
        if not sent.ok:
            return self.answer(sent)
        return self.answer(sent) + "".join(json.dumps(self.page.show_tiles({"path": name})) for name in sent.json())

    def value(self):
        return self.random.choice(self.values)

    def joined(self, body: dict) -> str:
        body = {"session_hash": uuid4().hex} | body
        response = self.page.post("queue/join", data=json.dumps(body), headers={"Content-Type": "application/json"})
        if not response.ok:
            return self.answer(response)
        return f"200 {json.dumps(self.page.last_message(body['session_hash']), ensure_ascii=False)}"

    @staticmethod
    def answer(response) -> str:
        return f"{response.status_code} {response.text}"


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value
