"""A Hub on this machine, for the real client: repositories in memory, tokens, and faults on demand."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits by id, oldest first, and where branches and tags point."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main") -> str:
        content = json.dumps(
            [len(self.commits), {name: hashlib.sha1(body).hexdigest() for name, body in files.items()}]
        )
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit] = files
        self.refs[branch] = commit
        return commit

    @property
    def files(self) -> Files:
        return self.commits[self.refs["main"]]


@dataclass
class Fault:
    """What befalls the requests that match, `times` times."""

    pattern: str
    """Of "METHOD path"."""
    times: int = 1
    status: int | None = None
    """Answered in place of what was asked for."""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Bytes of the body after which the connection is closed."""
    short_by: int = 0
    """Bytes missing at the end of a body whose stated length leaves them out too."""
    before: Callable[[], object] | None = None
    """Called before the request is answered."""


class LoopbackHub:
    """A server of the calls that `huggingface_hub` makes for models.

    Files ending in `.safetensors` are redirected to another host, as the Hub does with large ones.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens = {"reader": False, "writer": True}  # whether it may write
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.tokens_seen: list[tuple[str, str | None]] = []  # host, token
        self.sent: list[list[str]] = []  # names of the files that each commit carried
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def publish(self, repo_id: str, folder: Path, **options: Any) -> str:
        """Put a folder's files there, without a request; returns the commit."""
        repository = self.repositories.setdefault(repo_id, Repository(**options))
        return repository.commit({file.name: file.read_bytes() for file in folder.iterdir()})

    def fail(self, pattern: str, **fault: Any) -> None:
        self.faults.append(Fault(pattern, **fault))

    def requested(self, pattern: str) -> list[str]:
        return [request for request in self.requests if re.search(pattern, request)]


class _Answer(Exception):  # noqa: N818  # not an error: it ends the handling of a request
    def __init__(self, status: int, content: Any = None, **headers: str) -> None:
        self.status = status
        self.body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    server_hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves at once, not in pieces that wait for each other

    def do_GET(self) -> None:
        hub = self.server_hub
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        hub.tokens_seen.append((self.headers["Host"], self.token))
        byte_range = f" {self.headers['Range']}" if self.headers["Range"] else ""
        hub.requests.append(f"{self.command} {path}{byte_range}")
        fault = self._fault(f"{self.command} {path}")
        try:
            if fault.before is not None:
                fault.before()
            if fault.status is not None:
                raise _Answer(fault.status)
            self._route(path)
        except _Answer as answer:
            self._send(answer, fault)

    do_HEAD = do_POST = do_GET  # noqa: N815  # names that http.server calls

    def log_message(self, *_: object) -> None:
        pass

    def _fault(self, request: str) -> Fault:
        for fault in self.server_hub.faults:
            if fault.times > 0 and re.search(fault.pattern, request):
                fault.times -= 1
                return fault
        return Fault("")

    def _send(self, answer: _Answer, fault: Fault) -> None:
        body, status = answer.body, answer.status
        if status == 200 and (start := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")):
            answer.headers["Content-Range"] = f"bytes {start[1]}-{len(body) - 1}/{len(body)}"
            body, status = body[int(start[1]) :], 206
        if self.command == "GET":
            body = body[: len(body) - fault.short_by]
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **answer.headers, **fault.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: fault.cut_after])
        if fault.cut_after is not None:
            self.close_connection = True

    def _route(self, path: str) -> None:
        routes = {
            r"POST /api/repos/create": self._create,
            r"POST /api/validate-yaml": self._validate,
            r"GET /api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>.+))?": self._info,
            r"POST /api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>.+)": self._branch,
            r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>.+)": self._preupload,
            r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>.+)": self._commit,
            r"(HEAD|GET) /(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)": self._resolve,
            r"(HEAD|GET) /storage/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<name>.+)": self._storage,
        }
        for pattern, method in routes.items():
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                method(**match.groupdict())
        raise _Answer(404)

    def _repository(self, repo: str, *, write: bool = False, read_files: bool = False) -> Repository:
        hub = self.server_hub
        if self.token is not None and self.token not in hub.tokens:
            raise _Answer(401, X_Error_Message="Invalid credentials in Authorization header")
        repository = hub.repositories.get(repo)
        if repository is None or (repository.private and self.token is None):
            raise _Answer(404 if self.token else 401, X_Error_Code="RepoNotFound")
        if repository.gated and read_files and self.token is None:
            raise _Answer(401, X_Error_Code="GatedRepo")
        if write:
            self._check_write()
        return repository

    def _check_write(self) -> None:
        if self.token is None:
            raise _Answer(401)
        if not self.server_hub.tokens.get(self.token):
            raise _Answer(403, X_Error_Message="You don't have the rights to do this")

    def _files(self, repository: Repository, revision: str | None) -> tuple[str, Files]:
        commit = repository.refs.get(revision or "main", revision or "")
        if commit not in repository.commits:
            raise _Answer(404, X_Error_Code="RevisionNotFound")
        return commit, repository.commits[commit]

    def _create(self) -> None:
        self._check_write()
        wanted = json.loads(self.content)
        repo = f"{wanted['organization']}/{wanted['name']}"
        answer = {"url": f"{self.server_hub.endpoint}/{repo}"}
        if repo in self.server_hub.repositories:
            raise _Answer(409, answer)
        repository = Repository(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        repository.commit({".gitattributes": b""})
        self.server_hub.repositories[repo] = repository
        raise _Answer(200, answer)

    def _validate(self) -> None:
        content = json.loads(self.content)["content"]
        head = yaml.safe_load(content.split("---")[1]) if content.startswith("---\n") else None
        if not isinstance(head, dict):
            raise _Answer(400, {"errors": [{"message": "no metadata"}]})
        raise _Answer(200, {})

    def _info(self, repo: str, revision: str | None) -> None:
        repository = self._repository(repo)
        commit, files = self._files(repository, revision)
        siblings = [{"rfilename": name} for name in files]
        raise _Answer(200, {"id": repo, "sha": commit, "private": repository.private, "siblings": siblings})

    def _branch(self, repo: str, revision: str) -> None:
        repository = self._repository(repo, write=True)
        repository.refs[revision] = repository.refs["main"]
        raise _Answer(200)

    def _preupload(self, repo: str, revision: str) -> None:
        _, files = self._files(self._repository(repo, write=True), revision)
        asked = [file["path"] for file in json.loads(self.content)["files"]]
        answers = [
            {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": _git_id(files.get(path))}
            for path in asked
        ]
        raise _Answer(200, {"files": answers})

    def _commit(self, repo: str, revision: str) -> None:
        repository = self._repository(repo, write=True)
        head, files = self._files(repository, revision)
        lines = [json.loads(line) for line in self.content.splitlines()]
        values = {kind: [line["value"] for line in lines if line["key"] == kind] for kind in ("file", "deletedFile")}
        if lines[0]["value"].get("parentCommit", head) != head:
            raise _Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        added = {value["path"]: base64.b64decode(value["content"]) for value in values["file"]}
        removed = {value["path"] for value in values["deletedFile"]}
        kept = {name: body for name, body in files.items() if name not in removed}
        commit = repository.commit(kept | added, revision)
        self.server_hub.sent.append(sorted(added))
        url = f"{self.server_hub.endpoint}/{repo}/commit/{commit}"
        raise _Answer(200, {"commitUrl": url, "commitOid": commit})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        commit, files = self._files(self._repository(repo, read_files=True), revision)
        if name not in files:
            raise _Answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        body = files[name]
        if not name.endswith(".safetensors"):
            raise _Answer(200, body, ETag=f'"{_git_id(body)}"', X_Repo_Commit=commit)
        raise _Answer(
            302,
            Location=f"http://localhost:{self.server_hub.port}/storage/{repo}/{commit}/{name}",
            X_Repo_Commit=commit,
            X_Linked_Size=str(len(body)),
            X_Linked_ETag=f'"{hashlib.sha256(body).hexdigest()}"',
        )

    def _storage(self, repo: str, revision: str, name: str) -> None:
        raise _Answer(200, self.server_hub.repositories[repo].commits[revision][name])


def _git_id(body: bytes | None) -> str | None:
    return None if body is None else hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
