# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Opening the image that a string names (a file, a URL or base64), and limiting what a string may name."""

import base64
import binascii
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import PIL.Image

# all formats that are opened, if Pillow or a plug-in can read them; Pillow starts Ghostscript for EPS, and the rest
# are rare
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
MAX_REDIRECTS = 5
_HOW_TO_RAISE_THE_LIMIT = "Raise PIL.Image.MAX_IMAGE_PIXELS if you trust it, or pass a smaller image."


@dataclass(frozen=True)
class ImageAccess:
    """Which files and hosts a string that names an image may reach, and how large the image may be.

    The defaults suit a program that serves only its own user; `for_server` suits one that accepts messages from
    strangers. Base64 and `data:` URIs are always allowed, since they contain their image.

    Args:
        folders: files must lie below one of these folders, after links are resolved. None: any file; empty: no file.
        hosts: host names that images may be downloaded from, including hosts that redirect. None: any; empty: none.
            Names are compared, not addresses: list only hosts whose names you trust.
        public_hosts: with `hosts`, also allow any host whose addresses are all public. Downloads then connect
            directly, without the environment's proxies.
        max_bytes: largest download, in bytes.
        max_seconds: longest download, in seconds, including all redirects.
        max_pixels: largest image, in pixels, in addition to `PIL.Image.MAX_IMAGE_PIXELS`. None: no further limit.

    Raises:
        ValueError: if an argument has the wrong type or is not positive.
    """

    folders: Sequence[str | os.PathLike] | None = None
    hosts: Sequence[str] | None = None
    max_bytes: int = 100 * 2**20
    max_seconds: float = 60.0
    max_pixels: int | None = None
    public_hosts: bool = False

    def __post_init__(self):
        for name in ("folders", "hosts"):
            value = getattr(self, name)
            if isinstance(value, str | os.PathLike) or not (value is None or isinstance(value, Sequence)):
                raise ValueError(f"{name}={value!r}, expected a list, or None for all.")
        for name in ("max_bytes", "max_seconds", "max_pixels"):
            value = getattr(self, name)
            if not ((value is None and name == "max_pixels") or (isinstance(value, int | float) and value > 0)):
                raise ValueError(f"{name}={value!r}, expected a positive number.")

    @classmethod
    def for_server(
        cls, folders: Sequence[str | os.PathLike] = (), hosts: Sequence[str] = (), **limits
    ) -> "ImageAccess":
        """Access to the listed folders and hosts only (default: none)."""
        return cls(folders, hosts, **limits)

    def lists_host(self, host: str) -> bool:
        return self.hosts is None or host.lower() in {known.lower() for known in self.hosts}

    def allows_file(self, path: str) -> bool:
        """Whether the file lies in one of the folders. It need not exist."""
        if self.folders is None:
            return True
        try:
            resolved = Path(path).resolve()
            return any(resolved.is_relative_to(Path(folder).resolve()) for folder in self.folders)
        except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links
            return False


def _listed(names: Sequence) -> str:
    return ", ".join(map(str, names)) or "none"


_UNLIMITED = ImageAccess()


def open_image(source: str | os.PathLike, access: ImageAccess = _UNLIMITED) -> PIL.Image.Image:
    """Opens an image without decoding its pixels and without applying its EXIF orientation.

    Args:
        source: an http(s) URL, a path, a `file://` URL, a base64 string or a `data:image/...;base64,` URI.
        access: what the source may name.

    Raises:
        ValueError: if the source cannot be opened, `access` does not allow it, or the image has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`. The message names the source.
    """
    name = abbreviated(source)
    image = open_file(file_of(source, name, access), name)
    refuse_large(image, name, access)
    return image


def refuse_large(image: PIL.Image.Image, name: str, access: ImageAccess) -> None:
    """Raises `ValueError` if the image has more pixels than `access` allows."""
    if access.max_pixels is not None and math.prod(image.size) > access.max_pixels:
        raise ValueError(
            f"{name} of {image.width}x{image.height} pixels is larger than max_pixels={access.max_pixels}."
        )


def names_image(name: str | os.PathLike) -> bool:
    """Whether a file is an image of one of the readable `FORMATS`, by its ending."""
    return PIL.Image.registered_extensions().get(Path(name).suffix.lower()) in ("MPO", *readable_formats())


def readable_formats() -> list[str]:
    """The `FORMATS` that this Pillow opens. An MPO is opened as the JPEG that it begins with."""
    PIL.Image.init()
    return [format for format in FORMATS if format in PIL.Image.OPEN]


def open_file(file, name: str) -> PIL.Image.Image:
    """Opens a path or the bytes of a file as an image, undecoded. Messages call it `name`.

    Raises:
        ValueError: if the file is not an image of one of the `FORMATS`, or is a decompression bomb.
    """
    file, formats = BytesIO(file) if isinstance(file, bytes) else file, readable_formats()
    try:
        image = PIL.Image.open(file, formats=formats)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large to decode safely: {error} {_HOW_TO_RAISE_THE_LIMIT}") from error
    except Exception as error:  # Pillow's plugins raise errors of many types
        if isinstance(error, OSError) and error.errno:
            raise ValueError(f"{name} cannot be read: {error.strerror}.") from error
        if isinstance(error, PIL.UnidentifiedImageError) and (found := other_format(file)):
            raise ValueError(f"{name} is a file of the format {found}, expected one of {_listed(formats)}.") from error
        reason = "" if isinstance(error, PIL.UnidentifiedImageError) else f" ({type(error).__name__}: {error})"
        raise ValueError(
            f"{name} is not an image that Pillow can read{reason}. Expected an http(s) URL, the path of an image "
            f"file, or a base64 string, of the format {_listed(formats)}."
        ) from error
    image.source_name = name  # type: ignore[attr-defined]  # an image from memory has no file name
    refuse_bomb(image, name)
    return image


def other_format(file) -> str | None:
    """The format of a file if it is not one of `FORMATS`, by its first bytes. Nothing else of it is parsed."""
    with open(file, "rb") if isinstance(file, str | os.PathLike) else nullcontext(file) as opened:
        opened.seek(0)
        prefix = opened.read(16)
    for kind, (_, accepts) in PIL.Image.OPEN.items():
        with suppress(Exception):  # too few bytes
            if kind not in FORMATS and accepts is not None and accepts(prefix) is True:
                return kind
    return None


def name_of(image: PIL.Image.Image) -> str:
    """The name of an image in messages, with its source if it is known."""
    file_name = getattr(image, "filename", "")
    source = getattr(image, "source_name", None) or (abbreviated(file_name) if file_name else "")
    return f"The {image.format or image.mode} image {source}".rstrip()


def abbreviated(source) -> str:
    text = repr(os.fspath(source))
    return text if len(text) <= 200 else f"{text[:100]}...({len(text)} characters)"


def is_undecoded(image: PIL.Image.Image) -> bool:
    """Whether the pixels have not been read from the image's file yet."""
    # the attribute has an underscore since Pillow 11
    return bool(getattr(image, "tile", None)) or vars(image).get("_im", vars(image).get("im")) is None


def refuse_bomb(image: PIL.Image.Image, name: str) -> None:
    """Raises `ValueError` above Pillow's limit; Pillow itself only warns up to twice the limit."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and math.prod(image.size) > limit and is_undecoded(image):
        raise ValueError(
            f"{name} of {image.width}x{image.height} pixels is larger than Pillow's limit of {limit} pixels "
            f"against decompression bombs. {_HOW_TO_RAISE_THE_LIMIT}"
        )


def file_of(source: str | os.PathLike, name: str, access: ImageAccess, what: str = "an image") -> str | bytes:
    """The path of an existing file that may be read, or a file's bytes. Messages call its content `what`."""
    if not isinstance(source, str):
        return _local_file(os.fsdecode(source), name, access, what)
    scheme = source[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return _download(source, name, access)
    if scheme.startswith("file://"):
        return _local_file(_path_of(source, name, what), name, access, what)
    if scheme.startswith("data:"):
        return _data_of(source, name, what)
    data = None if access.allows_file(source) and os.path.exists(source) else _from_base64(source)
    return _local_file(source, name, access, what) if data is None else data


def _local_file(path: str, name: str, access: ImageAccess, what: str) -> str:
    if not access.allows_file(path):  # the message does not reveal whether the file exists
        raise ValueError(
            f"{name} is not in a folder that {what.split()[1]}s may be read from ({_listed(access.folders or ())}), "
            "nor is it an http(s) URL or a base64 string."
        )
    if not os.path.exists(path):
        raise ValueError(
            f"{name} does not exist. Expected the path of {what} file, an http(s) URL, or a base64 string."
        )
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not a regular file"
        raise ValueError(f"{name} is {kind}, expected the path of {what} file.")
    return path if access.folders is None else str(Path(path).resolve())


def _path_of(url: str, name: str, what: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(
            f"{name} is not a URL ({error}), expected file:///path/of/{what.replace(' ', '/')}."
        ) from error
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{name} is on the host {parts.netloc!r}, expected file:///path/of/{what.replace(' ', '/')}.")
    return url2pathname(parts.path)


def _data_of(uri: str, name: str, what: str) -> bytes:
    header, _, encoded = uri.partition(",")
    data = _from_base64(encoded) if header.endswith(";base64") else None
    if data is None:
        raise ValueError(
            f"{name} is not a data URI of {what}, expected 'data:{what.split()[1]}/...;base64,' and base64."
        )
    return data


# A shorter string cannot be the base64 of an image file, so it is a path
_SHORTEST_BASE64 = 40


def _from_base64(text: str) -> bytes | None:
    """The decoded bytes, or None if the text is not base64. It may have line breaks and lack its padding."""
    text = "".join(text.split())
    if len(text) < _SHORTEST_BASE64:
        return None
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _download(url: str, name: str, access: ImageAccess) -> bytes:
    # Only an event loop can stop a server that sends a byte now and then in time. It gets its own thread, since the
    # caller's thread may already run a loop.
    import asyncio  # as the client below, slow to import, and a file needs neither

    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, asyncio.wait_for(_fetch(url, access), access.max_seconds)).result()
    except asyncio.TimeoutError as error:
        raise ValueError(
            f"{name} cannot be downloaded: it takes longer than max_seconds={access.max_seconds:g}."
        ) from error
    except Exception as error:  # the client raises more than its own error types
        raise ValueError(f"{name} cannot be downloaded: {error or type(error).__name__}.") from error


async def _fetch(url: str, access: ImageAccess) -> bytes:
    try:
        from huggingface_hub.utils import httpx  # the client that transformers downloads images with
    except ImportError:  # before huggingface_hub 1.31 it has only this name
        import httpx  # type: ignore[import-not-found, no-redef]

    location = httpx.URL(url)
    async with httpx.AsyncClient(timeout=access.max_seconds, trust_env=not access.public_hosts) as client:
        for _ in range(1 + MAX_REDIRECTS):
            response = await client.send(await _request(client, location, access), stream=True)
            try:
                if not response.has_redirect_location:
                    return await _read_body(response.raise_for_status(), access.max_bytes)
                location = location.join(response.headers["location"])
            finally:
                await response.aclose()
    raise ValueError(f"it redirects more than {MAX_REDIRECTS} times")


async def _request(client, url, access: ImageAccess):
    """A request to the URL, or, if only public addresses are allowed, to the address that was checked."""
    headers = {"Accept-Encoding": "identity"}
    if access.lists_host(url.host):
        return client.build_request("GET", url, headers=headers)
    if not access.public_hosts:
        raise ValueError(f"the host {url.host!r} is not allowed, expected one of {_listed(access.hosts or ())}")
    from .public_hosts import public_address

    name = url.raw_host.decode("ascii")
    address = await public_address(name, url.port or (443 if url.scheme == "https" else 80))
    headers["Host"] = url.netloc.decode("ascii")
    # the certificate must be valid for the name
    return client.build_request("GET", url.copy_with(host=address), headers=headers, extensions={"sni_hostname": name})


async def _read_body(response, max_bytes: int) -> bytes:
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        # a few kilobytes can unpack to gigabytes in one step
        raise ValueError(f"its Content-Encoding is {encoding!r:.100}, expected 'identity', as the request says")
    stated = response.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > max_bytes:
        raise ValueError(f"it has {stated} bytes, more than max_bytes={max_bytes}")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise ValueError(f"it has more than max_bytes={max_bytes} bytes")
    return bytes(body)
