"""A stand-in for the Hugging Face Hub on this machine; repositories are in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_of_the_test"


class Hub(ThreadingHTTPServer):
    """Repositories: name -> commit -> files; the last commit is "main"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.claimed: dict[str, int] = {}  # sizes that differ from those of the files
        self.requested: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add files to a repository; gives the commit."""
        commits = self.repos.setdefault(repo, {})
        last = next(reversed(commits.values()), {})
        oid = hashlib.sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits[oid] = last | files
        return oid

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos.get(repo, {})
        oid = next(reversed(commits), "") if revision == "main" else revision
        return (oid, commits[oid]) if oid in commits else None


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(send=True)

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            front = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            problems = [] if front["library_name"] == "twinlens" else [{"message": "no library"}]
            self._json({"errors": problems, "warnings": []})
        elif match := re.fullmatch("/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            names = [one["path"] for one in json.loads(body)["files"]]
            self._json(
                {
                    "files": [
                        {"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names
                    ]
                }
            )
        elif match := re.fullmatch("/api/models/([^/]+/[^/]+)/commit/main", self.path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            oid = self.server.commit(match[1], files)
            url = f"{self.server.address}/{match[1]}/commit/{oid}"
            self._json({"success": True, "commitOid": oid, "commitUrl": url})
        else:
            self._json({"error": "not found"}, 404)

    def _create(self, asked: dict[str, Any]) -> None:
        repo = (
            f"{asked['organization']}/{asked['name']}" if "organization" in asked else asked["name"]
        )
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(repo)
        url = f"{self.server.address}/{repo}"
        if repo in self.server.repos:
            self._json({"error": "You already created this model repo", "url": url}, 409)
            return
        self.server.commit(repo, {".gitattributes": b""})
        self._json({"url": url, "name": repo})

    def _answer(self, *, send: bool) -> None:
        self.server.requested.append(self.path)
        path = self.path.partition("?")[0]
        if match := re.fullmatch("/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            found = self.server.files(match[1], match[2] or "main")
            if found is None:
                known = match[1] in self.server.repos
                code = "RevisionNotFound" if known else "RepoNotFound"
                self._json({"error": code}, 404, {"X-Error-Code": code})
                return
            oid, files = found
            sizes = {name: len(content) for name, content in files.items()} | self.server.claimed
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            self._json({"id": match[1], "sha": oid, "siblings": siblings, "tags": []})
        elif match := re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            found = self.server.files(match[1], match[2])
            if found is None or match[3] not in found[1]:
                self._json({"error": "EntryNotFound"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            content = found[1][match[3]]
            etag = hashlib.sha1(content).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": found[0]}
            self._send(content if send else b"", 200, headers, len(content))
        else:
            self._json({"error": "not found"}, 404)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self._send(content, status, {"Content-Type": "application/json"} | (headers or {}))

    def _send(
        self, content: bytes, status: int, headers: dict[str, str], length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
