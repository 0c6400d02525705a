"""Google Cloud Storage's JSON API in memory, as far as gcsfs and TensorStore use it.

Both are pointed at it by an environment variable, so that a test exercises their real code, over loopback.
"""

import base64
import contextlib
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c


class Store:
    """Objects by (bucket, name) -> (content, generation); any bucket named in `buckets` exists."""

    def __init__(self, *buckets: str):
        self.buckets, self.objects, self.uploads = set(buckets), {}, {}
        # (method, path) -> status to answer instead, or 0; may sleep.
        self.fault: Callable[[str, str], int] = lambda method, path: 0
        self.lock, self._generations = threading.RLock(), itertools.count(1700000000000001)

    def put(self, bucket: str, name: str, content: bytes) -> None:
        self.objects[bucket, name] = (content, next(self._generations))

    def names(self, bucket: str) -> list[str]:
        return sorted(name for b, name in self.objects if b == bucket)

    def describe(self, bucket: str, name: str) -> dict:
        content, generation = self.objects[bucket, name]
        checksum = google_crc32c.value(content).to_bytes(4, "big")
        return {
            "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(content)),
            "generation": str(generation), "metageneration": "1", "crc32c": base64.b64encode(checksum).decode(),
            "updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    store: Store

    def log_message(self, *args) -> None:
        pass

    def _answer(self, status: int, body: bytes | dict = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers.setdefault("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _error(self, status: int) -> None:
        self._answer(status, {"error": {"code": status, "message": f"{status}: {self.path}"}})

    def _handle(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in re.sub("^/(upload/|download/)?storage/v1/", "", url.path).split("/")]
        upload = url.path.startswith("/upload/")
        if status := self.store.fault(self.command, unquote(self.path)):
            return self._error(status)
        with self.store.lock:
            if len(parts) < 2 or parts[0] != "b" or parts[1] not in self.store.buckets:
                self._error(404)
            elif upload:
                self._upload(parts[1], query, body)
            elif len(parts) == 2:
                self._answer(200, {"kind": "storage#bucket", "name": parts[1], "location": "US"})
            elif len(parts) == 3:
                self._list(parts[1], query)
            else:
                self._object(parts, query)

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _list(self, bucket: str, query: dict) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        items, prefixes = [], []
        for name in self.store.names(bucket):
            if not name.startswith(prefix) or name < start or (end is not None and name >= end):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if found and prefix + head + delimiter not in prefixes:
                prefixes.append(prefix + head + delimiter)
            if not found:
                items.append(self.store.describe(bucket, name))
        self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": prefixes})

    def _object(self, parts: list[str], query: dict) -> None:
        bucket, name = parts[1], parts[3]
        if (bucket, name) not in self.store.objects:
            return self._error(404)
        content, generation = self.store.objects[bucket, name]
        if self.command == "DELETE":
            if query.get("ifGenerationMatch") not in (None, str(generation)):
                return self._error(412)
            del self.store.objects[bucket, name]
            return self._answer(204)
        if len(parts) > 4:  # .../moveTo/o/NAME or .../rewriteTo/b/BUCKET/o/NAME
            self.store.put(bucket, parts[-1], content)
            if parts[4] == "moveTo":
                del self.store.objects[bucket, name]
            described = self.store.describe(bucket, parts[-1])
            return self._answer(200, described if parts[4] == "moveTo" else {"done": True, "resource": described})
        if query.get("alt") != "media":
            return self._answer(200, self.store.describe(bucket, name))
        return self._media(content, generation, query)

    def _media(self, content: bytes, generation: int, query: dict) -> None:
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304)
        if query.get("ifGenerationMatch") not in (None, str(generation)):
            return self._error(412)
        headers = {"Content_Type": "application/octet-stream", "X_Goog_Generation": str(generation)}
        asked = re.match(r"bytes=(\d*)-(\d*)$", self.headers.get("Range", ""))
        if not asked:
            return self._answer(200, content, **headers)
        first, last = asked.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            return self._error(416)
        headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._answer(206, content[start:stop], **headers)

    def _upload(self, bucket: str, query: dict, body: bytes) -> None:
        name = query.get("name")
        if query.get("uploadType") == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            described, content = body.split(b"--" + boundary)[1:3]
            described, content = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (described, content))
            name, body = json.loads(described)["name"], re.sub(rb"\r?\n$", b"", content)
        elif "upload_id" in query:
            return self._chunk(bucket, query, body)
        there = self.store.objects.get((bucket, name), (b"", 0))[1]
        if query.get("ifGenerationMatch") not in (None, str(there)):
            return self._error(412)
        if query.get("uploadType") == "resumable":
            upload = f"u{len(self.store.uploads)}"
            self.store.uploads[upload] = (name, b"")
            where = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o?upload_id={upload}"
            return self._answer(200, Location=where)
        self.store.put(bucket, name, body)
        return self._answer(200, self.store.describe(bucket, name))

    def _chunk(self, bucket: str, query: dict, body: bytes) -> None:
        name, before = self.store.uploads[query["upload_id"]]
        content = before + body
        self.store.uploads[query["upload_id"]] = (name, content)
        if self.headers["Content-Range"].endswith("/*"):
            return self._answer(308, Range=f"bytes=0-{len(content) - 1}")
        self.store.put(bucket, name, content)
        return self._answer(200, self.store.describe(bucket, name))


@contextlib.contextmanager
def serve(*buckets: str) -> Iterator[tuple[Store, dict[str, str]]]:
    """A store with these buckets, and the environment that sends gcsfs and TensorStore to it."""
    store = Store(*buckets)
    server = ThreadingHTTPServer(("localhost", 0), type("Handler", (_Handler,), {"store": store}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://localhost:{server.server_port}"
    try:
        yield store, {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with serve("bucket") as (_, environment):
        print(*(f"{name}={value}" for name, value in environment.items()), flush=True)
        threading.Event().wait()
