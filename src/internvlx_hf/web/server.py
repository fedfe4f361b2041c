# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Serving the page: which routes of Gradio's server can be reached, and what a browser may load."""

import asyncio
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

from .limits import Limits
from .uploads import Uploads

logger = logging.getLogger(__name__)

MAX_CONVERSATIONS = 32  # beyond this, the least recently used one is dropped
CLEAN_EVERY = 60  # seconds
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
_FILE, _UPLOAD = f"{_API}/file=", f"{_API}/upload"
# Gradio's page has scripts and styles of its own in its HTML; nothing is loaded from or sent to another host
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)


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
        uploads = Uploads(folder, limits.max_bytes)
        page = build_page(Callbacks(shared, limits, uploads))
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
            app_kwargs={"middleware": [Middleware(_OnlyThePage, uploads=uploads)]},
        )
        say(f"Serving {shared.name} at {page.local_url} (Ctrl-C to stop)")
        with suppress(KeyboardInterrupt), _ended_by_sigterm():
            until = until or threading.Event()
            while not until.wait(CLEAN_EVERY):
                uploads.clean()
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
    """ASGI middleware that allows only the routes that the page needs, only uploads as files, and bodies of limited
    size.

    Gradio itself would fetch URLs for any client (`file=https://...`, `proxy=`) and accept any number of uploads.
    """

    def __init__(self, app, uploads: Uploads):
        self.app, self.uploads = app, uploads

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        started = False

        async def send_with_policy(message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        is_upload = path.rstrip("/") == _UPLOAD and scope["method"] == "POST"
        refusal = self._refusal(scope, path, is_upload)
        if refusal is None:
            if is_upload:
                await asyncio.to_thread(self.uploads.clean)
            try:
                return await self.app(scope, receive, send_with_policy)
            except Exception as error:  # of many types from Gradio's routes; the page's callbacks run elsewhere
                if started or scope["method"] != "POST":
                    raise
                logger.warning("A malformed request to %s: %r", path, error)
                refusal = 400, f"The request is malformed ({type(error).__name__})."
        status, text = refusal
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send_with_policy({"type": "http.response.start", "status": status, "headers": headers})
        await send_with_policy({"type": "http.response.body", "body": text.encode()})

    def _refusal(self, scope, path: str, is_upload: bool) -> tuple[int, str] | None:
        if path.startswith(_FILE):
            try:
                self.uploads.file(path.removeprefix(_FILE))
            except ValueError as error:
                return 403, str(error)
        elif path.rstrip("/") not in _EXACT and path not in _EXACT and not path.startswith(_BELOW):
            return 404, "There is nothing here."
        if scope["method"] != "POST":
            return None
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411, "The request has no Content-Length."
        limit = MAX_BODY_BYTES + (self.uploads.max_bytes if is_upload else 0)
        if int(length) > limit:
            return 413, f"The request has {int(length):,} bytes, expected at most {limit:,}. Upload a smaller image."
        client = (scope.get("client") or ("",))[0]
        refused = self.uploads.refusal(client, int(length)) if is_upload else None
        return (429, refused) if refused else None
