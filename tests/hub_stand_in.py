"""A stand-in for the Hub that speaks its protocol over HTTP on loopback: repositories, trees, LFS, commits, downloads.

It keeps everything in memory, counts what was asked of it, and can be told to fail. The client is the real one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "stand-in-token-for-tests"


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")

    def commit(self, changes: dict[str, bytes | None], message: str) -> None:
        for name, content in changes.items():
            if content is None:
                del self.files[name]
            else:
                self.files[name] = content
        state = json.dumps([message, len(self.commits), sorted((n, blob(c)) for n, c in self.files.items())])
        self.commits.append(hashlib.sha1(state.encode()).hexdigest())

    @property
    def head(self) -> str:
        return self.commits[-1]


class Hub(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}  # (kind, user/name)
        self.store: dict[str, bytes] = {}  # LFS, by sha256
        self.requests: list[str] = []
        self.uploaded: list[str] = []  # sha256 of what came by LFS
        self.fail_commits = 0  # so many are answered with 500 and change nothing
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def constants(self, cache: Path) -> dict[str, str | bool]:
        """huggingface_hub's, as HF_ENDPOINT, HF_HUB_OFFLINE=0 and HF_HUB_DISABLE_XET=1 would make them."""
        return {
            "ENDPOINT": self.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{self.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(cache),
        }

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.server.requests.append(f"{method} {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/lfs/"):
            return self._send({"error": "Invalid credentials"}, 401)
        for pattern, answer in _ROUTES:
            if (found := re.fullmatch(pattern, f"{method} {path}")) is not None:
                return answer(self, body, **found.groupdict())
        self._send({"error": f"the stand-in does not know {method} {path}"}, 404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if not isinstance(value, bytes):
            self.send_header("Content-Type", "application/json")
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _repository(self, kind: str, name: str) -> Repository | None:
        found = self.server.repositories.get((kind.rstrip("s"), name))
        if found is None:
            self._send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return found

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        key = (asked.get("type") or "model", f"{asked.get('organization') or 'me'}/{asked['name']}")
        private = asked.get("visibility") == "private" or asked.get("private") is True
        if key in self.server.repositories:
            return self._send({"error": "You already created this repository", "url": self._url(key)}, 409)
        self.server.repositories[key] = Repository(private)
        self._send({"url": self._url(key), "name": key[1]})

    def _url(self, key: tuple[str, str]) -> str:
        return f"{self.server.address}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}"

    def validate(self, body: bytes) -> None:
        head = json.loads(body)["content"]
        ok = head.startswith("---\n")
        self._send({"errors": [] if ok else [{"message": "no metadata"}], "warnings": []}, 200 if ok else 400)

    def info(self, body: bytes, kind: str, name: str) -> None:
        if (repository := self._repository(kind, name)) is not None:
            siblings = [{"rfilename": path} for path in sorted(repository.files)]
            self._send({"id": name, "private": repository.private, "sha": repository.head, "siblings": siblings})

    def tree(self, body: bytes, kind: str, name: str) -> None:
        if (repository := self._repository(kind, name)) is None:
            return
        rows: list[dict] = []
        for path, content in sorted(repository.files.items()):
            row = {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
            if path in repository.large:
                row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
                row["oid"] = blob(b"pointer " + hashlib.sha256(content).digest())
            rows.append(row)
        folders = {path.rpartition("/")[0] for path in repository.files if "/" in path}
        rows += [{"type": "directory", "path": path, "oid": blob(path.encode())} for path in sorted(folders)]
        self._send(rows)

    def preupload(self, body: bytes, kind: str, name: str) -> None:
        if (repository := self._repository(kind, name)) is None:
            return
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            large = path.endswith((".safetensors", ".parquet", ".png"))
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if path in repository.files:
                content = repository.files[path]
                answer["oid"] = hashlib.sha256(content).hexdigest() if path in repository.large else blob(content)
            answers.append(answer)
        self._send({"files": answers})

    def batch(self, body: bytes, kind: str | None, name: str) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            answer = dict(asked)
            if asked["oid"] not in self.server.store:
                answer["actions"] = {"upload": {"href": f"{self.server.address}/lfs/{asked['oid']}"}}
            objects.append(answer)
        self._send({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send({"error": "another content"}, 400)
        self.server.store[oid] = body
        self.server.uploaded.append(oid)
        self._send({})

    def commit(self, body: bytes, kind: str, name: str) -> None:
        if (repository := self._repository(kind, name)) is None:
            return
        if self.server.fail_commits:
            self.server.fail_commits -= 1
            return self._send({"error": "the Hub is having a bad day"}, 500)
        changes: dict[str, bytes | None] = {}
        message = ""
        for line in filter(None, body.split(b"\n")):
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, repository.head):
                    return self._send({"error": "A commit has happened since. Please refresh and try again."}, 412)
            elif row["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                changes[value["path"]] = self.server.store[value["oid"]]
                repository.large.add(value["path"])
            else:
                changes[value["path"]] = None
        repository.commit(changes, message)
        address = f"{self._url((kind.rstrip('s'), name))}/commit/{repository.head}"
        self._send({"success": True, "commitOid": repository.head, "commitUrl": address})

    def resolve(self, body: bytes, name: str, path: str, kind: str | None = None) -> None:
        if (repository := self._repository(kind or "models", name)) is None:
            return
        content = repository.files.get(path)
        if content is None:
            return self._send({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        self._send(content, headers={"ETag": f'"{blob(content)}"', "X-Repo-Commit": repository.head})


_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES = [
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate),
    (rf"GET /api/(?P<kind>models|datasets)/{_NAME}", _Handler.info),
    (rf"GET /api/(?P<kind>models|datasets)/{_NAME}/revision/main", _Handler.info),
    (rf"GET /api/(?P<kind>models|datasets)/{_NAME}/tree/main", _Handler.tree),
    (rf"POST /api/(?P<kind>models|datasets)/{_NAME}/preupload/main", _Handler.preupload),
    (rf"POST /api/(?P<kind>models|datasets)/{_NAME}/commit/main", _Handler.commit),
    (r"POST /(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    (rf"(?:GET|HEAD) /(?:(?P<kind>datasets)/)?{_NAME}/resolve/(?:main|[0-9a-f]{{40}})/(?P<path>.+)", _Handler.resolve),
]
