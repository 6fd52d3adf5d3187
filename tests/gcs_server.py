"""HTTP server with the part of Cloud Storage's JSON API that tensorstore uses, on the files of a `FakeBucket`."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse

from tests.bucket import FakeBucket


class _Handler(http.server.BaseHTTPRequestHandler):
    """Reads, writes, lists and deletes objects. The generation of an object changes with every write."""

    protocol_version = "HTTP/1.1"
    generations: dict[str, int]
    bucket: FakeBucket
    lock: threading.Lock

    def log_message(self, *_):
        """Prints nothing."""

    def do_GET(self):
        path, query = self._parse()
        name = path.partition("/o/")[2]
        if not name:
            return self._list(query)
        with self.lock:
            content, generation = self._content(name), self.generations.get(name, 0)
        if content is None:
            return self._answer(404, {"error": {"code": 404, "message": "no object"}})
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304, None)
        if query.get("alt") != "media":
            return self._answer(200, self._describe(name, content))
        start, end, status = 0, len(content), 200
        if "Range" in self.headers:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            start, end, status = int(first or -int(last)), int(last) + 1 if first and last else end, 206
        body = content[start:end]
        headers = {"x-goog-generation": generation, "x-goog-stored-content-length": len(content)}
        if status == 206:
            headers["Content-Range"] = f"bytes {start % len(content)}-{start + len(body) - 1}/{len(content)}"
        return self._answer(status, body, headers)

    def do_POST(self):
        _, query = self._parse()
        body, name = self.rfile.read(int(self.headers["Content-Length"])), query["name"]
        with self.lock:
            expected = query.get("ifGenerationMatch")
            current = self.generations.get(name, 0) if self._content(name) is not None else 0
            if expected is not None and int(expected) != current:
                return self._answer(412, {"error": {"code": 412, "message": "generation"}})
            self.generations[name] = self.generations.get(name, 0) + 1
            self.bucket.pipe_file(f"gs://lab/{name}", body)
        return self._answer(200, self._describe(name, body))

    def do_DELETE(self):
        name = self._parse()[0].partition("/o/")[2]
        with self.lock:
            if self._content(name) is None:
                return self._answer(404, {"error": {"code": 404, "message": "no object"}})
            self.bucket.rm_file(f"gs://lab/{name}")
        return self._answer(204, None)

    def _list(self, query):
        prefix = f"gs://lab/{query.get('prefix', '')}"
        with self.lock:
            found = [(url.removeprefix("gs://lab/"), content) for url, content in self.bucket.files(prefix).items()]
        return self._answer(200, {"items": [self._describe(name, content) for name, content in sorted(found)]})

    def _parse(self):
        url = urllib.parse.urlsplit(self.path)
        return urllib.parse.unquote(url.path), dict(urllib.parse.parse_qsl(url.query))

    def _content(self, name: str) -> bytes | None:
        return self.bucket.files("gs://lab/").get(f"gs://lab/{name}")

    def _describe(self, name: str, content: bytes):
        return {
            "name": name,
            "bucket": "lab",
            "size": str(len(content)),
            "generation": str(self.generations.get(name, 1)),
            "metageneration": "1",
        }

    def _answer(self, status: int, body, headers=None):
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, str(value))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def serve(bucket: FakeBucket) -> http.server.ThreadingHTTPServer:
    """Starts a server for `bucket` on a free port of this machine, in a thread. `shutdown` ends it."""
    handler = type("Handler", (_Handler,), {"generations": {}, "bucket": bucket, "lock": threading.Lock()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
