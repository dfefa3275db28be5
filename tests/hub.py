"""A stand-in of the Hugging Face hub for tests: the calls of its API that huggingface_hub's file system makes."""

import hashlib
import http.server
import json
import re
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub:
    """Serves the folders below `root`, each OWNER/NAME, as data sets of one commit. asked: every request that came.
    refused: the files that nobody gets."""

    refused: tuple[str, ...] = ()

    def __init__(self, root: Path):
        self.root, self.asked, self.commit = root, [], "0" * 40
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(hub):  # noqa: N805
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append((self.path, dict(self.headers)))
                path = unquote(urlsplit(self.path).path)
                if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                    self._repository(*found.groups())
                elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
                    self._tree(*found.groups())
                elif found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
                    self._file(*found.groups())
                else:
                    self._missing("EntryNotFound")

            do_HEAD = do_GET  # noqa: N815

            def do_POST(self):
                hub.asked.append((self.path, dict(self.headers)))
                content = self.rfile.read(int(self.headers["Content-Length"])).decode()
                found = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", urlsplit(self.path).path)
                try:
                    paths = json.loads(content)["paths"]
                except ValueError:  # sent as a form
                    paths = [unquote(part.partition("=")[2].replace("+", " ")) for part in content.split("&")
                             if part.startswith("paths=")]
                folder = hub.root / found[1]
                self._json([hub.entry(folder, folder / path) for path in paths if (folder / path).exists()])

            def _repository(self, name, revision):
                if not (hub.root / name).is_dir():
                    return self._missing("RepoNotFound")
                if revision not in (None, "main", hub.commit):
                    return self._missing("RevisionNotFound")
                self._json({"id": name, "sha": hub.commit, "private": False, "tags": [], "downloads": 0, "likes": 0,
                            "siblings": []})

            def _tree(self, name, revision, path):
                folder = hub.root / name
                below = folder / (path or "")
                if not below.is_dir():
                    return self._missing("EntryNotFound")
                found = below.rglob("*") if "recursive=True" in self.path or "recursive=true" in self.path else \
                    below.iterdir()
                self._json([hub.entry(folder, entry) for entry in sorted(found)])

            def _file(self, name, revision, path):
                file = hub.root / name / path
                if not file.is_file() or path in hub.refused:
                    return self._missing("EntryNotFound")
                content = file.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", hub.commit)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def _json(self, content):
                body = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _missing(self, code):
                self.send_response(404)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        return Handler

    def entry(self, folder: Path, path: Path) -> dict:
        """What the hub says of a file or folder."""
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "1" * 40}
        content = path.read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
