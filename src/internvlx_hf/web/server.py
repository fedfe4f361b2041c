# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Serving the page: which routes of Gradio's server can be reached, and where uploads are stored."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .limits import Limits

MAX_CONVERSATIONS = 32  # beyond this, the least recently used one is dropped
MAX_UPLOADS = 50  # disk space for uploads, in uploads of the maximum size
MAX_BODY_BYTES = 1_000_000  # of a request other than an upload
_API = "/gradio_api"
# the routes that the page needs
_EXACT = {
    *("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json"),
    *(
        f"{_API}/{name}"
        for name in ("info", "queue/join", "queue/data", "upload", "upload_progress", "startup-events")
    ),
    *(f"{_API}/{name}" for name in ("cancel", "reset", "theme.css", "user", "login_check", "app_id")),
}
_BELOW = ("/assets/", "/static/", "/svelte/", f"{_API}/heartbeat/")
_FILE = f"{_API}/file="


def serve(
    load: Callable[[], Any],
    limits: Limits,
    host: str = "127.0.0.1",
    port: int = 7860,
    say: Callable[[str], None] = print,
    until: threading.Event | None = None,
) -> None:
    """Serve the page until the program is interrupted or `until` is set. Uploads are deleted at the end.

    Args:
        load: loads the [`SharedModel`]. It is called after the page's packages have been found.
        limits: limits on the requests of a visitor.
        host: address to listen on.
        port: port to listen on.
        say: called with a line that has the page's address.
        until: event that ends the server.

    Raises:
        ImportError: if Gradio or matplotlib is not installed.
        OSError: if the port is in use.
    """
    missing = [name for name in ("gradio", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ImportError(f"The page needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="internvlx-web-") as folder, _environment(folder):
        import gradio  # reads the environment on import and when the page is built
        from starlette.middleware import Middleware

        from .callbacks import Callbacks
        from .fragments import STYLE as FRAGMENT_STYLE
        from .page import STYLE, build_page

        shared = load()
        shared.warm_up()
        page = build_page(Callbacks(shared, limits))
        system_fonts = ("system-ui", "sans-serif")
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=limits.max_bytes,
            state_session_capacity=MAX_CONVERSATIONS,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            ssr_mode=False,
            num_workers=0,
            pwa=False,
            mcp_server=False,
            theme=gradio.themes.Default(font=system_fonts, font_mono=("ui-monospace", "monospace")),
            css=STYLE + FRAGMENT_STYLE,
            app_kwargs={"middleware": [Middleware(_OnlyThePage, folder=folder, max_bytes=limits.max_bytes)]},
        )
        say(f"Serving {shared.name} at {page.local_url} (Ctrl-C to stop)")
        with suppress(KeyboardInterrupt), _ended_by_sigterm():
            (until or threading.Event()).wait()
        # do not wait for connected browsers, which uvicorn would report as an error
        logging.getLogger("uvicorn.error").disabled = True
        page.server.force_exit = True
        page.close(verbose=False)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that uploads are deleted."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """Set Gradio's options that have no argument: its files in `folder`, no telemetry."""
    settings = {
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_EXAMPLES_CACHE": str(Path(folder, "examples")),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_ALLOWED_PATHS": "",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class _OnlyThePage:
    """ASGI middleware that allows only the routes that the page needs, only uploads as files, and bodies of limited size.

    Gradio itself would fetch URLs for any client (`file=https://...`, `proxy=`) and accept any number of uploads.
    """

    def __init__(self, app, folder: str, max_bytes: int):
        self.app, self.folder, self.max_bytes = app, os.path.realpath(folder), max_bytes

    async def __call__(self, scope, receive, send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            return await self.app(scope, receive, send)
        status, text = refusal
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    def _refusal(self, scope) -> tuple[int, str] | None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if path.startswith(_FILE):
            inside = os.path.realpath(unquote(path.removeprefix(_FILE))).startswith(self.folder + os.sep)
            return None if inside else (403, "This is not an upload.")
        if path.rstrip("/") not in _EXACT and path not in _EXACT and not path.startswith(_BELOW):
            return 404, "There is nothing here."
        if scope["method"] == "POST":
            return self._body_refusal(path, dict(scope["headers"]).get(b"content-length", b""))
        return None

    def _body_refusal(self, path: str, length: bytes) -> tuple[int, str] | None:
        if not length.isdigit():
            return 411, "The request has no Content-Length."
        is_upload = path.rstrip("/") == f"{_API}/upload"
        limit = self.max_bytes + MAX_BODY_BYTES if is_upload else MAX_BODY_BYTES
        if int(length) > limit:
            return 413, f"The request has {int(length):,} bytes, expected at most {limit:,}. Upload a smaller image."
        if is_upload and _folder_bytes(self.folder) > MAX_UPLOADS * self.max_bytes:
            return 503, "There are too many uploads at the moment. Try again in a few minutes."
        return None


def _folder_bytes(folder: str) -> int:
    return sum(path.lstat().st_size for path in Path(folder).rglob("*") if path.is_file())
