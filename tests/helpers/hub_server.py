"""A Hub on loopback: the few routes that pushing and loading a model take, in memory, with a log of every request.

It answers the real `huggingface_hub` client (HF_ENDPOINT) as the Hub does: repositories with branches and commits, LFS
uploads in one piece or in parts, downloads of large files by way of another host, private repositories and tokens. It can
break a connection in the middle of a transfer.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

from huggingface_hub import ModelCard

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
TOKENS = {WRITER: ("you", "write"), READER: ("you", "read"), STRANGER: ("stranger", "write")}
# files from this size are uploaded in parts of the other
MULTIPART_FROM, PART_SIZE = 240_000, 64_000


@dataclass(frozen=True)
class Blob:
    content: bytes
    is_lfs: bool

    @property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        return self.sha256 if self.is_lfs else self.git_id


@dataclass
class Repository:
    name: str
    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, Blob], message: str) -> str:
        listing = repr((self.name, len(self.commits), sorted((name, blob.oid) for name, blob in files.items())))
        sha = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[sha], self.messages[sha], self.refs[ref] = files, message, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    status: int
    has_token: bool
    range: str | None


@dataclass
class Drop:
    """A transfer that breaks off once, after `after` bytes."""

    method: str
    pattern: str
    after: int


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Hub:
    """The server; `with Hub() as hub` runs it. `endpoint` is for HF_ENDPOINT."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.log: list[Request] = []
        # an object whose upload is refused
        self.refused: str | None = None
        self.drops: list[Drop] = []
        self.dropped: list[Drop] = []
        self.lock = threading.RLock()
        # files are served from another origin than the Hub itself, which must not see the token
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) for _ in range(2)]
        # different hosts to clients that do not look at the port
        self.endpoint, self.cdn = (
            f"http://{host}:{server.server_port}"
            for host, server in zip(("127.0.0.1", "localhost"), self.servers, strict=True)
        )

    def __enter__(self) -> "Hub":
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def drop(self, method: str, pattern: str, after: int) -> Drop:
        """Break the next transfer whose path matches, once, after so many bytes."""
        self.drops.append(Drop(method, pattern, after))
        return self.drops[-1]

    def take_drop(self, method: str, path: str) -> Drop | None:
        with self.lock:
            for drop in self.drops:
                if drop.method == method and re.search(drop.pattern, path):
                    self.drops.remove(drop)
                    self.dropped.append(drop)
                    return drop
        return None

    def requests(self, method: str, pattern: str) -> list[Request]:
        with self.lock:
            return [entry for entry in self.log if entry.method == method and re.search(pattern, entry.path)]

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo]
        return {name: blob.content for name, blob in repository.commits[repository.resolve(revision)].items()}

    def head(self, repo: str, revision: str = "main") -> str:
        return self.repositories[repo].resolve(revision)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    # -- plumbing

    def answer(self) -> None:
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        self.body = None
        try:
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, self.url.path)
                if method == self.command.replace("HEAD", "GET") and match:
                    with nullcontext() if re.search("cdn|lfs", pattern) else self.hub.lock:
                        status, headers, content = action(self, *map(unquote, match.groups()))
                    break
            else:
                raise Refusal(404, f"no route for {self.command} {self.url.path}")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            status, content = refusal.status, {"error": refusal.message}
        except ConnectionError:
            self.note(0)
            self.break_off()
            return
        if self.body is None:
            self.read_body()
        self.note(status)
        self.send(status, headers, content)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def note(self, status: int) -> None:
        has_token = self.headers.get("Authorization") is not None
        with self.hub.lock:
            self.hub.log.append(Request(self.command, self.path, status, has_token, self.headers.get("Range")))

    def send(self, status: int, headers: dict, content: dict | list | bytes) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        drop = self.hub.take_drop("GET", self.path) if self.command == "GET" and status < 300 else None
        self.wfile.write(data[: drop.after] if drop else data)
        if drop:
            self.break_off()

    def break_off(self) -> None:
        """End the connection in the middle of what it carries."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def read_body(self) -> bytes:
        drop = self.hub.take_drop(self.command, self.path) if self.command != "GET" else None
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
                if drop and sum(map(len, pieces)) >= drop.after:
                    raise ConnectionError
            self.rfile.readline()
            self.body = b"".join(pieces)
        else:
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(min(length, drop.after) if drop else length)
        if drop:
            raise ConnectionError
        return self.body

    def json(self) -> dict:
        return json.loads(self.read_body())

    # -- who may do what

    def user(self) -> tuple[str | None, str | None]:
        header = self.headers.get("Authorization")
        if header is None:
            return None, None
        if (token := header.removeprefix("Bearer ")) not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS[token]

    def repository(self, name: str, write: bool = False) -> Repository:
        user, _ = self.user()
        repository = self.hub.repositories.get(name)
        is_owner = user == name.partition("/")[0]
        if repository is None or (repository.private and not is_owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.may_write(name)
        return repository

    def may_write(self, name: str) -> None:
        user, role = self.user()
        if user is None:
            raise Refusal(401, "Unauthorized")
        if user != name.partition("/")[0] or role != "write":
            raise Refusal(403, f"You don't have the rights to write to {name}")

    def revision(self, repository: Repository, revision: str) -> str:
        if (sha := repository.resolve(revision)) is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # -- the API

    def whoami(self):
        user, role = self.user()
        if user is None:
            raise Refusal(401, "Unauthorized")
        return 200, {}, {"type": "user", "name": user, "auth": {"accessToken": {"role": role}}}

    def create(self):
        asked = self.json()
        user, _ = self.user()
        name = f"{asked.get('organization') or user}/{asked['name']}"
        self.may_write(name)
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.repositories:
            return 409, {}, {"error": "You already created this model repo", "url": url}
        private = asked.get("private") or asked.get("visibility") == "private"
        repository = self.hub.repositories[name] = Repository(name, bool(private))
        repository.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        return 200, {}, {"url": url, "name": name}

    def validate(self):
        try:
            ModelCard(self.json()["content"])
        except ValueError as error:
            return 400, {}, {"errors": [{"message": str(error)}], "warnings": []}
        return 200, {}, {"errors": [], "warnings": []}

    def info(self, name: str, revision: str = "main"):
        repository = self.repository(name)
        sha = self.revision(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        facts = {"id": name, "_id": name, "sha": sha, "private": repository.private, "siblings": siblings}
        return 200, {}, {**facts, "tags": [], "downloads": 0, "likes": 0}

    def refs(self, name: str):
        refs = self.repository(name).refs.items()
        branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha} for ref, sha in refs]
        return 200, {}, {"branches": branches, "converts": [], "tags": []}

    def branch(self, name: str, branch: str):
        repository = self.repository(name, write=True)
        if branch in repository.refs:
            raise Refusal(409, "Reference already exists")
        repository.refs[branch] = repository.refs["main"]
        return 200, {}, {}

    def tree(self, name: str, revision: str, under: str = ""):
        repository = self.repository(name)
        files = repository.commits[self.revision(repository, revision)]
        found = {path: blob for path, blob in files.items() if not under or path.startswith(f"{under}/")}
        if under and not found:
            raise Refusal(404, f"{under} does not exist", "EntryNotFound")
        entries = []
        for path, blob in sorted(found.items()):
            entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_id}
            if blob.is_lfs:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
            entries.append(entry)
        return 200, {}, entries

    def preupload(self, name: str, revision: str):
        repository = self.repository(name, write="create_pr" not in self.query)
        files = repository.commits[self.revision(repository, revision)]
        answer = []
        for file in self.json()["files"]:
            mode = "lfs" if file["path"].endswith((".safetensors", ".bin", ".pt")) else "regular"
            there = files.get(file["path"])
            answer.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": there and there.oid}
            )
        return 200, {}, {"files": answer}

    def commit(self, name: str, revision: str):
        is_pr = "create_pr" in self.query
        repository = self.repository(name, write=not is_pr)
        parent = self.revision(repository, revision)
        files = dict(repository.commits[parent])
        for line in self.read_body().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit", parent) != parent:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif entry["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif entry["key"] == "lfsFile":
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
            else:
                del files[value["path"]]
        ref = f"refs/pr/{len(repository.commits)}" if is_pr else revision
        sha = repository.commit(ref, files, message)
        url = f"{self.hub.endpoint}/{name}"
        pull = f"{url}/discussions/{ref.rpartition('/')[-1]}" if is_pr else None
        return 200, {}, {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "pullRequestUrl": pull}

    # -- large files

    def batch(self, name: str):
        asked = self.json()
        with self.hub.lock:
            self.repository(name)
            return 200, {}, {"transfer": "basic", "objects": [self.instructions(entry) for entry in asked["objects"]]}

    def instructions(self, entry: dict) -> dict:
        oid, size = entry["oid"], entry["size"]
        answer = {"oid": oid, "size": size}
        if oid in self.hub.objects:
            return answer
        url = f"{self.hub.endpoint}/lfs/{oid}"
        upload = {"href": url}
        if size >= MULTIPART_FROM:
            parts = {str(number): f"{url}/{number}" for number in range(1, -(-size // PART_SIZE) + 1)}
            upload = {"href": f"{url}/complete", "header": {"chunk_size": str(PART_SIZE), **parts}}
        return {**answer, "actions": {"upload": upload, "verify": {"href": f"{url}/verify"}}}

    def put(self, oid: str):
        content = self.read_body()
        if oid == self.hub.refused:
            raise Refusal(400, "the storage is full")
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the content is not what its name says")
        self.hub.objects[oid] = content
        return 200, {}, {}

    def put_part(self, oid: str, number: str):
        content = self.hub.parts[oid, int(number)] = self.read_body()
        return 200, {"ETag": hashlib.md5(content).hexdigest()}, {}

    def complete(self, oid: str):
        parts = self.json()["parts"]
        content = b"".join(self.hub.parts[oid, part["partNumber"]] for part in parts)
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the parts are not what their name says")
        self.hub.objects[oid] = content
        return 200, {}, {}

    def verify(self, oid: str):
        if len(self.hub.objects.get(oid, b"")) != self.json()["size"]:
            raise Refusal(404, "there is no such object")
        return 200, {}, {}

    # -- files

    def resolve(self, name: str, revision: str, path: str):
        repository = self.repository(name)
        sha = self.revision(repository, revision)
        headers = {"X-Repo-Commit": sha}
        blob = repository.commits[sha].get(path)
        if blob is None:
            return 404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, {}
        size = len(blob.content)
        if blob.is_lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(size)}
            return 302, {**headers, "Location": f"{self.hub.cdn}/cdn/{blob.sha256}"}, {}
        headers |= {"X-Linked-Etag": f'"{blob.git_id}"', "X-Linked-Size": str(size)}
        return 307, {**headers, "Location": f"/api/resolve-cache/models/{name}/{sha}/{quote(path)}"}, {}

    def resolve_cache(self, name: str, sha: str, path: str):
        blob = self.repository(name).commits[sha][path]
        return 200, {"X-Repo-Commit": sha, "ETag": f'"{blob.git_id}"'}, blob.content

    def download(self, oid: str):
        content = self.hub.objects[oid]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked:
            return 200, {"ETag": f'"{oid}"'}, content
        start = int(asked[1])
        place = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206, {"ETag": f'"{oid}"', "Content-Range": place}, content[start:]


NAME, SHA256 = r"([^/]+/[^/]+)", r"([0-9a-f]{64})"
ROUTES = (
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"/api/models/{NAME}", _Handler.info),
    ("GET", f"/api/models/{NAME}/revision/([^/]+)", _Handler.info),
    ("GET", f"/api/models/{NAME}/refs", _Handler.refs),
    ("POST", f"/api/models/{NAME}/branch/([^/]+)", _Handler.branch),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)", _Handler.tree),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)/(.+)", _Handler.tree),
    ("POST", f"/api/models/{NAME}/preupload/([^/]+)", _Handler.preupload),
    ("POST", f"/api/models/{NAME}/commit/([^/]+)", _Handler.commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", f"/lfs/{SHA256}", _Handler.put),
    ("PUT", rf"/lfs/{SHA256}/(\d+)", _Handler.put_part),
    ("POST", f"/lfs/{SHA256}/complete", _Handler.complete),
    ("POST", f"/lfs/{SHA256}/verify", _Handler.verify),
    ("GET", f"/{NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET", f"/api/resolve-cache/models/{NAME}/([^/]+)/(.+)", _Handler.resolve_cache),
    ("GET", f"/cdn/{SHA256}", _Handler.download),
)
