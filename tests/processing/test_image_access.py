# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What strings that name images may reach: files, hosts, bytes and seconds; and the errors that say so."""

import asyncio
import base64
import gzip
import io
import json
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


def drip(content: bytes):
    for byte in content:
        yield bytes([byte])
        time.sleep(0.05)


# ---- downloads


def test_a_url_is_downloaded_also_from_within_an_event_loop():
    async def in_a_loop(url):
        return open_image(url)

    with server(lambda path: response(png())) as (port, _):
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

    with server(endless) as (port, _), pytest.raises(ValueError, match=r"/x.png' cannot.*more than max_bytes=50000"):
        open_image(f"http://127.0.0.1:{port}/x.png", ImageAccess(max_bytes=50_000))
    assert len(sent) < 10_000  # 100 MB were there to be had


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "GZip", "br", "deflate"])
def test_a_compressed_download_is_refused_by_its_encoding_before_it_is_unpacked(encoding):
    packed = gzip.compress(gzip.compress(bytes(10**7)))
    with (
        server(lambda path: response(packed, f"Content-Encoding: {encoding}")) as (port, _),
        pytest.raises(ValueError, match=f"/x.png' cannot.* Content-Encoding is '{encoding}', expected 'identity'"),
    ):
        open_image(f"http://127.0.0.1:{port}/x.png", ImageAccess(max_bytes=50_000))


def test_a_download_that_says_that_it_is_not_compressed_is_read():
    with server(lambda path: response(png(), "Content-Encoding: identity")) as (port, _):
        assert open_image(f"http://127.0.0.1:{port}/x.png").size == (256, 256)


@pytest.mark.parametrize("part", ["body", "header"])
def test_a_slow_download_is_stopped_after_the_time_limit(part):
    content = response(b"", "X-Long: " + "x" * 5000) if part == "header" else response(png() + bytes(5000))
    start = time.monotonic()
    with (
        server(lambda path: drip(content)) as (port, _),
        pytest.raises(ValueError, match=r"/x.png' cannot be downloaded: it takes longer than max_seconds=0.5"),
    ):
        open_image(f"http://127.0.0.1:{port}/x.png", ImageAccess(max_seconds=0.5))  # else it is 250 s
    assert time.monotonic() - start < 20


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
        with pytest.raises(ValueError, match=f"redirects more than {MAX_REDIRECTS} times"):
            open_image(f"http://127.0.0.1:{port}/{MAX_REDIRECTS + 1}")


def test_only_listed_hosts_are_contacted_and_each_redirect_is_checked():
    with server(lambda path: response(png())) as (port, paths):
        for access in (ImageAccess.for_server(), ImageAccess(hosts=["example.org"])):
            with pytest.raises(
                ValueError, match=r"the host '127.0.0.1' is not allowed, expected one of (none|example)"
            ):
                open_image(f"http://127.0.0.1:{port}/x.png", access)
            with pytest.raises(ValueError, match=r"the host '127\.0\.0\.1' is not allowed"):
                open_image(f"http://example.org@127.0.0.1:{port}/x.png", access)
        assert not paths
        open_image(f"http://LocalHost:{port}/x.png", ImageAccess.for_server(hosts=["localhost"]))
        assert paths == ["/x.png"]

        def redirect(path):
            return response(b"", f"Location: http://127.0.0.1:{port}/secret", status="302 Found")

        with (
            server(redirect) as (other, _),
            pytest.raises(ValueError, match=r"the host '127\.0\.0\.1' is not allowed"),
        ):
            open_image(f"http://localhost:{other}/x.png", ImageAccess.for_server(hosts=["localhost"]))
        assert paths == ["/x.png"]


def test_a_public_host_is_contacted_at_the_address_that_was_checked(monkeypatch):
    lookups = []

    def getaddrinfo(host, port, *args, **kwargs):
        lookups.append(host)
        found = {
            "images.example": "127.0.0.1",
            "rebinds.example": "127.0.0.1" if lookups.count(host) == 1 else "10.0.0.1",
        }
        addresses = {**found, "intranet.example": "127.0.0.2", "both.example": "127.0.0.1 127.0.0.2"}.get(host, host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses.split()]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    # stands for the only address of the internet
    monkeypatch.setattr("internvlx_hf.processing.public_hosts.is_public", lambda address: str(address) == "127.0.0.1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.2:1")
    access = ImageAccess.for_server(public_hosts=True)

    def answer(path):
        return (
            response(b"", f"Location: {path[3:]}", status="302 Found") if path.startswith("/to") else response(png())
        )

    with server(answer) as (port, paths):
        for url in (f"http://images.example:{port}/to/x", f"http://rebinds.example:{port}/x"):
            assert open_image(url, access).size == (256, 256)
        asked = len(paths)
        for host in ("intranet.example", "both.example", "127.0.0.2"):
            for url in (f"http://{host}:{port}/x", f"http://images.example:{port}/tohttp://{host}:{port}/x"):
                with pytest.raises(ValueError, match=rf"the host '{host}' is not allowed, expected one with public"):
                    open_image(url, access)
        assert paths[asked:] == [
            f"/tohttp://{host}:{port}/x" for host in ("intranet.example", "both.example", "127.0.0.2")
        ]
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


def test_a_redirect_leads_to_no_file(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png())
    for target in (f"file://{path}", str(path), "ftp://127.0.0.1/x"):
        with (
            server(lambda path, target=target: response(b"", f"Location: {target}", status="302 Found")) as (port, _),
            pytest.raises(ValueError, match="cannot be downloaded"),
        ):
            open_image(f"http://127.0.0.1:{port}/x.png")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://[::1", "port"),
        ("http://host:port/", "port"),
        ("http://\udc80.org/", "IDNA"),
        ("http:///x.png", "protocol|host"),
        ("http://127.0.0.1:1/x.png", "connect"),
    ],
)
def test_an_impossible_url_is_named(url, reason):
    with pytest.raises(ValueError, match=f"cannot be downloaded: .*({reason})") as error:
        open_image(url)
    assert repr(url) in str(error.value)


def test_an_answer_that_is_no_image_names_its_url():
    for answer, message in [
        (response(b"gone", status="404 Not Found"), r"/x.png' cannot be downloaded: .*404"),
        (response(b"<html>"), r"/x.png' is not an image"),
        (response(png()[:-100]), r"The PNG image 'http.*/x.png' is corrupt or truncated"),
    ]:
        with (
            server(lambda path, answer=answer: answer) as (port, _),
            pytest.raises(ValueError, match=message),
        ):
            InternVLXImageProcessor()(f"http://127.0.0.1:{port}/x.png")


# ---- files


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A folder that may be read, and one that may not; an image in each."""
    for name in ("shared", "secret"):
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
    outside += [shared / "folder" / "deep" / "x.png", secret / "none.png", "../secret/deep/x.png"]
    for path in outside:
        for source in (Path(path), str(path), f"file://{Path(path).absolute()}"):
            with pytest.raises(ValueError, match=r"is not in a folder that images may be read from .*shared"):
                open_image(source, access)
    with pytest.raises(ValueError, match=r"none\.png' does not exist"):
        open_image(shared / "none.png", access)


def test_a_folder_with_the_same_prefix_is_another_folder(tmp_path):
    for name in ("images", "images-secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png())
    access = ImageAccess(folders=[tmp_path / "images"])
    assert open_image(tmp_path / "images" / "x.png", access)
    with pytest.raises(ValueError, match="not in a folder"):
        open_image(tmp_path / "images-secret" / "x.png", access)


def test_a_server_reads_no_file_by_default_and_accepts_base64(folders):
    access = ImageAccess.for_server()
    encoded = base64.b64encode(png()).decode()
    unpadded, lines = encoded.rstrip("="), "\n".join(encoded[i : i + 70] for i in range(0, len(encoded), 70))
    for source in (encoded, unpadded, lines, f"data:image/png;base64,{encoded}"):
        assert open_image(source, access).size == (256, 256)
    messages = set()
    for path in (folders[1] / "deep" / "x.png", folders[1] / "deep" / "y.png"):
        for source in (path, str(path), f"file://{path}"):
            with pytest.raises(ValueError, match=r"may be read from \(none\)") as error:
                open_image(source, access)
            messages.add(str(error.value).partition("' ")[2])
    assert len(messages) == 1  # nor does the message tell whether there is such a file


def test_more_pixels_than_allowed_are_refused():
    encoded = base64.b64encode(png()).decode()
    assert open_image(encoded, ImageAccess(max_pixels=256 * 256))
    with pytest.raises(ValueError, match="of 256x256 pixels is larger than max_pixels=65535"):
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
    with pytest.raises(ValueError, match=f"{name}="):
        ImageAccess(**arguments)


# ---- the image processor


def test_the_image_processor_asks_its_access_and_never_saves_it(folders, tmp_path):
    shared, secret = folders
    processor = InternVLXImageProcessor()
    processor.access = ImageAccess.for_server(folders=[shared])
    assert len(processor(str(shared / "deep" / "x.png")).pixel_values) == 1
    for nested in (str(secret / "deep" / "x.png"), [[secret / "deep" / "x.png"]]):
        with pytest.raises(ValueError, match="not in a folder"):
            processor(nested)
    processor.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert "access" not in config
    loaded = InternVLXImageProcessor.from_pretrained(tmp_path / "saved")
    assert loaded.access == ImageAccess()
    served = InternVLXImageProcessor.from_pretrained(tmp_path / "saved", access=ImageAccess.for_server())
    assert served.access == ImageAccess.for_server()
    assert InternVLXImageProcessor(access=ImageAccess.for_server()).access == ImageAccess.for_server()
    # a checkpoint does not say what may be read
    assert InternVLXImageProcessor.from_dict(config | {"access": None}).access == ImageAccess()
    with pytest.raises(ValueError, match="access=None, expected an ImageAccess"):
        InternVLXImageProcessor(access=None)


@pytest.mark.parametrize("path", ["/no/such.png", "no/such", "none.png", "https.png"])
def test_a_missing_file_is_reported_as_missing(path):
    sources = [path, Path(path), [path]]
    if path.startswith("/"):
        sources.append(f"file://{path}")
    for source in sources:
        with pytest.raises(ValueError, match=f"{path}' does not exist"):
            InternVLXImageProcessor()(source)


def test_a_path_that_is_not_a_file_is_named_with_its_kind(tmp_path):
    with pytest.raises(ValueError, match="is a folder, expected the path of an image file"):
        open_image(tmp_path)
    with pytest.raises(ValueError, match="'/dev/null' is not a regular file"):
        open_image("/dev/null")
    with pytest.raises(ValueError, match="on the host 'elsewhere', expected file:///"):
        open_image("file://elsewhere/x.png")
    with pytest.raises(ValueError, match=r"is not a data URI of an image, expected 'data:image/...;base64,'"):
        open_image("data:image/png,%89PNG")


def test_a_file_url_with_escapes_is_its_path(tmp_path):
    path = tmp_path / "a b ü.png"
    path.write_bytes(png())
    expected = InternVLXImageProcessor()(path, return_tensors="pt").pixel_values
    assert torch.equal(InternVLXImageProcessor()(path.as_uri(), return_tensors="pt").pixel_values, expected)
