# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The folder of uploads: which of its files a request may name, how much a client may send, and when files are
deleted.
"""

import math
import os
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

from ..checkpoints.numbers import counted
from ..processing.image_files import ImageAccess

DELETE_AFTER = 3600  # seconds
MAX_UPLOADS = 50  # disk space for uploads, in uploads of the maximum size
MAX_CLIENT_UPLOADS = 10  # the same for one client, within DELETE_AFTER
_LEAST_SHARE = 20  # each upload counts as at least this part of the maximum size, since files also cost inodes


class Uploads:
    """The uploads of all clients.

    Args:
        folder: where they are stored.
        max_bytes: maximum size of an upload.
    """

    def __init__(self, folder: str | os.PathLike, max_bytes: int):
        self.folder, self.max_bytes = Path(folder), max_bytes
        self._access = ImageAccess.for_server([folder])
        self._received: deque[tuple[float, str, int]] = deque()  # time, client, bytes
        self._lock = threading.Lock()

    def file(self, name: str) -> Path:
        """The resolved path of an upload that a request names. Nothing else may open a path from a request.

        Raises:
            ValueError: if it is no upload. The message does not reveal whether there is such a file elsewhere.
        """
        if not self._access.allows_file(name) or not os.path.isfile(name):
            raise ValueError(f"The upload {Path(name).name!r:.100} is no longer there. Upload the image again.")
        return Path(name).resolve()

    def refusal(self, client: str, size: int) -> str | None:
        """Why a client may not upload `size` bytes now. None: it may, and they are counted."""
        now, limit = time.time(), MAX_CLIENT_UPLOADS * self.max_bytes
        size = min(max(size, self.max_bytes // _LEAST_SHARE), self.max_bytes)
        with self._lock:
            while self._received and self._received[0][0] <= now - DELETE_AFTER:
                self._received.popleft()
            own = [(at, sent) for at, sender, sent in self._received if sender == client]
            excess = sum(sent for _, sent in own) + size - limit
            if excess <= 0:
                self._received.append((now, client, size))
                return None
        freed = accumulate(sent for _, sent in own)
        at = next(at for (at, _), total in zip(own, freed, strict=True) if total >= excess)
        minutes = math.ceil((at + DELETE_AFTER - now) / 60)
        return (
            f"Your address has uploaded {sum(sent for _, sent in own):,} bytes within {DELETE_AFTER // 60} minutes, "
            f"expected at most {limit:,}. Try again in {counted(minutes, 'minute')}."
        )

    def add(self, client: str, name: str, content: bytes) -> str:
        """Store a file as an upload of this client. Returns: its path. Raises: ValueError: if it has uploaded too
        much.
        """
        if refused := self.refusal(client, len(content)):
            raise ValueError(refused)
        path = Path(tempfile.mkdtemp(dir=self.folder), name)
        path.write_bytes(content)
        self.clean()
        return str(path)

    def clean(self) -> None:
        """Delete files older than `DELETE_AFTER`, and the oldest ones if all take too much space."""
        found = []
        for path in self.folder.rglob("*"):
            with suppress(OSError):
                if path.is_file():
                    found.append((path.stat().st_mtime, path.stat().st_size, path))
        excess = sum(size for _, size, _ in found) - MAX_UPLOADS * self.max_bytes
        for modified, size, path in sorted(found):
            if excess <= 0 and modified > time.time() - DELETE_AFTER:
                break
            excess -= size
            path.unlink(missing_ok=True)
            if path.parent != self.folder:
                with suppress(OSError):  # another upload of the same content has begun
                    path.parent.rmdir()
