# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What strings that name images may reach: files, hosts, bytes and seconds; and the errors that say so."""

import asyncio
import base64
import gzip
import io
import socket
import threading
import time
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvlx_hf.processing import ImageAccess, InternVLXImageProcessor
from internvlx_hf.processing.image_files import MAX_REDIRECTS, open_image
from internvlx_hf.processing.public_hosts import is_public
from json_files import json_of
from refusals import refusals, refused


def png() -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").save(stream, "PNG")
    return stream.getvalue()


def response(body: bytes, *headers: str, status: str = "200 OK", has_length: bool = True) -> bytes:
    length = [f"Content-Length: {len(body)}"] if has_length else []
    return "\r\n".join([f"HTTP/1.1 {status}", *length, "Connection: close", *headers, "", ""]).encode() + body


@contextmanager
def server(answer):
    """A server on loopback: `answer(path)` gives what is sent, bytes or pieces of them with pauses. Gives port and paths.

    It answers only those who ask for uncompressed content.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    paths = []

    def serve(connection):
        with connection, connection.makefile("rb") as request:
            paths.append(request.readline().split()[1].decode())
            headers = {line.strip().lower() for line in iter(request.readline, b"\r\n")}
            is_plain = b"accept-encoding: identity" in headers
            answered = answer(paths[-1]) if is_plain else response(b"", status="406 Not Acceptable")
            try:
                for piece in [answered] if isinstance(answered, bytes) else answered:
                    connection.sendall(piece)
            except OSError:
                pass  # the client has had enough

    def accept():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1], paths
    finally:
        listening.close()


# ---- downloads


def test_a_url_is_downloaded_also_from_within_an_event_loop():
    async def in_a_loop(url):
        return open_image(url)

    with server(lambda path: response(png(), "Content-Encoding: identity")) as (port, _):
        url = f"http://127.0.0.1:{port}/x.png"
        for image in (open_image(url), asyncio.run(in_a_loop(url))):
            assert image.tobytes() == Image.linear_gradient("L").tobytes()


@pytest.mark.parametrize("has_length", [True, False])
def test_a_download_of_too_many_bytes_is_stopped(has_length):
    sent = []

    def endless(path):
        yield response(b"", f"Content-Length: {10**12}" if has_length else "X: y", has_length=False)
        while len(sent) < 10_000:
            yield b"x" * 10_000
            sent.append(1)

    with server(endless) as (port, _), refused("/x.png' cannot", "more than max_bytes=50000"):
        open_image(f"http://127.0.0.1:{port}/x.png", ImageAccess(max_bytes=50_000))
    assert len(sent) < 10_000  # 100 MB were there to be had


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "GZip", "br", "deflate"])
def test_a_compressed_download_is_refused_by_its_encoding_before_it_is_unpacked(encoding):
    packed = gzip.compress(gzip.compress(bytes(10**7)))
    with (
        server(lambda path: response(packed, f"Content-Encoding: {encoding}")) as (port, _),
        refused("/x.png' cannot", f"Content-Encoding is '{encoding}'", "'identity'"),
    ):
        open_image(f"http://127.0.0.1:{port}/x.png", ImageAccess(max_bytes=50_000))


@pytest.mark.parametrize("part", ["body", "header"])
def test_a_slow_download_is_stopped_after_the_time_limit(part):
    content = response(b"", "X-Long: " + "x" * 5000) if part == "header" else response(png() + bytes(5000))
    sent = []

    def drip(path):
        for byte in content:
            sent.append(byte)
            yield bytes([byte])
            time.sleep(0.05)

    with server(drip) as (port, _), refused("/x.png' cannot be downloaded … it takes longer than max_seconds=0.5"):
        open_image(f"http://127.0.0.1:{port}/x.png", ImageAccess(max_seconds=0.5))
    assert len(sent) < 500


def test_a_url_scheme_may_be_in_capitals(folders):
    with server(lambda path: response(png())) as (port, _):
        assert open_image(f"HTTP://127.0.0.1:{port}/x.png").size == (256, 256)
    assert open_image(f"DATA:image/png;base64,{base64.b64encode(png()).decode()}").size == (256, 256)
    assert open_image(f"FILE://{folders[0]}/deep/x.png").size == (256, 256)


def test_a_file_is_opened_by_the_path_that_was_allowed(folders, monkeypatch):
    shared, _ = folders
    (shared / "link.png").symlink_to(shared / "deep" / "x.png")
    opened = []
    monkeypatch.setattr("internvlx_hf.processing.image_files.open_file", lambda path, name: opened.append(path))
    open_image(shared / "link.png", ImageAccess(folders=[shared]))
    assert opened == [str((shared / "deep" / "x.png").resolve())]  # a link could lead elsewhere by now


def test_redirects_are_followed_up_to_a_limit():
    def answer(path):
        number = int(path.strip("/"))
        return response(b"", f"Location: /{number - 1}", status="302 Found") if number else response(png())

    with server(answer) as (port, paths):
        assert open_image(f"http://127.0.0.1:{port}/{MAX_REDIRECTS}").size == (256, 256)
        assert len(paths) == MAX_REDIRECTS + 1
        with refused(f"redirects more than {MAX_REDIRECTS} times"):
            open_image(f"http://127.0.0.1:{port}/{MAX_REDIRECTS + 1}")


def test_only_listed_hosts_are_contacted_and_each_redirect_is_checked():
    def answer(path):
        to = f"Location: http://127.0.0.1:{port}/secret"
        return response(b"", to, status="302 Found") if path == "/to" else response(png())

    with server(answer) as (port, paths):
        local = ImageAccess.for_server(hosts=["localhost"])
        open_image(f"http://LocalHost:{port}/x.png", local)
        for access, url, hosts in (
            (ImageAccess.for_server(), f"http://127.0.0.1:{port}/x.png", "none"),
            (ImageAccess(hosts=["example.org"]), f"http://127.0.0.1:{port}/x.png", "example.org"),
            (ImageAccess(hosts=["example.org"]), f"http://example.org@127.0.0.1:{port}/x.png", "example.org"),
            (local, f"http://localhost:{port}/to", "localhost"),
        ):
            with refused("the host '127.0.0.1' is not allowed", f"one of {hosts}"):
                open_image(url, access)
        assert paths == ["/x.png", "/to"]


def test_a_public_host_is_contacted_at_the_address_that_was_checked(monkeypatch):
    lookups = []
    found = {"images.example": "127.0.0.1", "intranet.example": "127.0.0.2", "both.example": "127.0.0.1 127.0.0.2"}

    def getaddrinfo(host, port, *args, **kwargs):
        lookups.append(host)
        rebound = {"rebinds.example": "127.0.0.1" if lookups.count(host) == 1 else "10.0.0.1"}
        addresses = (found | rebound).get(host, host).split()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    # stands for the only address of the internet
    monkeypatch.setattr("internvlx_hf.processing.public_hosts.is_public", lambda address: str(address) == "127.0.0.1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.2:1")
    access = ImageAccess.for_server(public_hosts=True)

    def answer(path):
        to = f"Location: {path[3:]}"
        return response(b"", to, status="302 Found") if path.startswith("/to") else response(png())

    with server(answer) as (port, paths):
        for url in (f"http://images.example:{port}/to/x", f"http://rebinds.example:{port}/x"):
            assert open_image(url, access).size == (256, 256)
        paths.clear()
        private = [f"http://{host}:{port}/x" for host in ("intranet.example", "both.example", "127.0.0.2")]
        for url in private:
            for way in (url, f"http://images.example:{port}/to{url}"):
                with refused(f"the host '{url.split('/')[2].split(':')[0]}' is not allowed", "one with public"):
                    open_image(way, access)
        assert paths == [f"/to{url}" for url in private]
        listed = ImageAccess.for_server(hosts=["127.0.0.1"], public_hosts=True)
        assert open_image(f"http://127.0.0.1:{port}/x", listed).size == (256, 256)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("93.184.215.14", True), ("2606:2800:21f:cb07::1", True), ("64:ff9b::93.184.215.14", True)]
    + [
        (private, False)
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "2002:7f00:1::1",
            "64:ff9b::127.0.0.1",
            "fc00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ]
    ],
)
def test_addresses_of_machines_and_their_networks_are_not_public(address, expected):
    assert is_public(ip_address(address)) is expected


@pytest.mark.parametrize("target", ["file://{}", "{}", "ftp://127.0.0.1/x"])
def test_a_redirect_leads_to_no_file(folders, target):
    to = "Location: " + target.format(folders[0] / "deep" / "x.png")
    with server(lambda path: response(b"", to, status="302 Found")) as (port, _), refused("cannot be downloaded"):
        open_image(f"http://127.0.0.1:{port}/x.png")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://[::1", "port"),
        ("http://host:port/", "port"),
        ("http://\udc80.org/", "IDNA"),
        ("http:///x.png", "protocol"),
        ("http://127.0.0.1:1/x.png", "connection"),
    ],
)
def test_an_impossible_url_is_named(url, reason):
    with refused(repr(url), f"cannot be downloaded: … {reason}"):
        open_image(url)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (response(b"gone", status="404 Not Found"), "/x.png' cannot be downloaded: … 404"),
        (response(b"<html>"), "/x.png' is not an image"),
        (response(png()[:-100]), "The PNG image 'http … /x.png' is corrupt or truncated"),
    ],
)
def test_an_answer_that_is_no_image_names_its_url(answer, said):
    with server(lambda path: answer) as (port, _), refused(said):
        InternVLXImageProcessor()(f"http://127.0.0.1:{port}/x.png")


# ---- files


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A folder that may be read, and one that may not; an image in each, and in another with the first one's prefix."""
    for name in ("shared", "secret", "shared-secret"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x.png").write_bytes(png())
    return tmp_path / "shared", tmp_path / "secret"


def test_a_server_reads_only_what_lies_in_its_folders(folders, monkeypatch):
    shared, secret = folders
    (shared / "link.png").symlink_to(secret / "deep" / "x.png")
    (shared / "folder").symlink_to(secret)
    (secret / "link.png").symlink_to(shared / "deep" / "x.png")
    monkeypatch.chdir(shared)
    access = ImageAccess.for_server(folders=[shared])
    inside = (shared / "deep" / "x.png", shared / ".." / "shared" / "deep" / "x.png", secret / "link.png")
    for path in [*inside, "deep/x.png"]:
        for source in {path, str(path), f"file://{Path(path).absolute()}"}:
            assert open_image(source, access).size == (256, 256)
    outside = [secret / "deep" / "x.png", shared / ".." / "secret" / "deep" / "x.png", shared / "link.png"]
    outside += [
        shared / "folder" / "deep" / "x.png",
        secret / "none.png",
        "../secret/deep/x.png",
        "../shared-secret/deep/x.png",
    ]
    for path in outside:
        for source in (Path(path), str(path), f"file://{Path(path).absolute()}"):
            with refused("is not in a folder that images may be read from", "shared"):
                open_image(source, access)
    with refused("none.png' does not exist"):
        open_image(shared / "none.png", access)


def test_a_server_reads_no_file_by_default_and_accepts_base64(folders):
    access = ImageAccess.for_server()
    encoded = base64.b64encode(png()).decode()
    unpadded, lines = encoded.rstrip("="), "\n".join(encoded[i : i + 70] for i in range(0, len(encoded), 70))
    for source in (encoded, unpadded, lines, f"data:image/png;base64,{encoded}"):
        assert open_image(source, access).size == (256, 256)
    messages = set()
    for path in (folders[1] / "deep" / "x.png", folders[1] / "deep" / "y.png"):
        for source in (path, str(path), f"file://{path}"):
            with refused("may be read from (none)") as error:
                open_image(source, access)
            messages.add(str(error.value).partition("' ")[2])
    assert len(messages) == 1  # nor does the message tell whether there is such a file


def test_more_pixels_than_allowed_are_refused():
    encoded = base64.b64encode(png()).decode()
    assert open_image(encoded, ImageAccess(max_pixels=256 * 256))
    with refused("of 256x256 pixels is larger than max_pixels=65535"):
        open_image(encoded, ImageAccess(max_pixels=65535))


@pytest.mark.parametrize(
    "arguments",
    [
        {"folders": "images"},
        {"hosts": "example.org"},
        {"folders": 3},
        {"max_bytes": 0},
        {"max_seconds": -1},
        {"max_seconds": None},
        {"max_seconds": float("nan")},
        {"max_pixels": "9"},
    ],
)
def test_impossible_limits_are_refused(arguments):
    (name,) = arguments
    with refused(f"{name}="):
        ImageAccess(**arguments)


# ---- the image processor


def test_the_image_processor_asks_its_access_and_never_saves_it(folders, tmp_path):
    shared, secret = folders
    processor = InternVLXImageProcessor()
    processor.access = ImageAccess.for_server(folders=[shared])
    assert len(processor(str(shared / "deep" / "x.png")).pixel_values) == 1
    for nested in (str(secret / "deep" / "x.png"), [[secret / "deep" / "x.png"]]):
        with refused("not in a folder"):
            processor(nested)
    processor.save_pretrained(tmp_path / "saved")
    config = json_of(tmp_path / "saved" / "preprocessor_config.json")
    assert "access" not in config
    loaded = InternVLXImageProcessor.from_pretrained(tmp_path / "saved")
    assert loaded.access == ImageAccess()
    served = InternVLXImageProcessor.from_pretrained(tmp_path / "saved", access=ImageAccess.for_server())
    assert served.access == ImageAccess.for_server()
    assert InternVLXImageProcessor(access=ImageAccess.for_server()).access == ImageAccess.for_server()
    # a checkpoint does not say what may be read
    assert InternVLXImageProcessor.from_dict(config | {"access": None}).access == ImageAccess()
    with refused("access=None", "an ImageAccess"):
        InternVLXImageProcessor(access=None)


@pytest.mark.parametrize("path", ["/no/such.png", "no/such", "none.png", "https.png"])
def test_a_missing_file_is_reported_as_missing(path):
    for source in (path, Path(path), [path], *[f"file://{path}"][: path.startswith("/")]):
        with refused(f"{path}' does not exist"):
            InternVLXImageProcessor()(source)


test_a_path_that_is_not_a_file_is_named_with_its_kind = refusals(
    (lambda tmp_path: open_image(tmp_path), "is a folder", "the path of an image file"),
    (lambda: open_image("/dev/null"), "'/dev/null'", "is not a regular file"),
    (lambda: open_image("file://elsewhere/x.png"), "on the host 'elsewhere'", "file:///"),
    (lambda: open_image("data:image/png,%89PNG"), "is not a data URI of an image", "'data:image/...;base64,'"),
)


def test_a_file_url_with_escapes_is_its_path(tmp_path):
    path = tmp_path / "a b ü.png"
    path.write_bytes(png())
    expected = InternVLXImageProcessor()(path, return_tensors="pt").pixel_values
    assert torch.equal(InternVLXImageProcessor()(path.as_uri(), return_tensors="pt").pixel_values, expected)
