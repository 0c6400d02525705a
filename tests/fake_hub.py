"""The Hugging Face hub's API in memory, as far as `huggingface_hub` uses it to look, to download and to commit.

HF_ENDPOINT points the library at it, so that a test exercises the library's real code, over loopback. Files of LFS are
redirected to another host than the API's, as the hub does: the token must not arrive there.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

LFS = (".safetensors", ".model", ".bin")


@dataclasses.dataclass
class Repo:
    commits: list[tuple[str, dict[str, bytes]]] = dataclasses.field(default_factory=list)  # (sha, files), oldest first
    private: bool = False
    gated: bool = False
    messages: list[str] = dataclasses.field(default_factory=list)
    tags: dict[str, str] = dataclasses.field(default_factory=dict)

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        """Put a new state of all files on top."""
        text = f"{len(self.commits)} {message} " + " ".join(f"{name} {_sha(files[name])}" for name in sorted(files))
        self.commits.append((hashlib.sha1(text.encode()).hexdigest(), files))
        self.messages.append(message)
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        revision = self.tags.get(revision, self.commits[-1][0] if revision == "main" else revision)
        return next((one for one in self.commits if one[0] == revision), None)


class Hub:
    """Repositories by name; tokens by what they may: 'write' in `owners`, or 'read'."""

    def __init__(self, owners: tuple[str, ...] = ("org",)):
        self.repos: dict[str, Repo] = {}
        self.tokens, self.owners = {"hf_writer": "write", "hf_reader": "read", "hf_fine": "fineGrained"}, owners
        self.objects: dict[str, bytes] = {}  # what was uploaded by LFS, by SHA-256
        self.requests: list[str] = []  # method and path of each
        self.failing: dict[str, int] = {}  # pattern of such a request -> status of its answer
        self.leaks: list[str] = []  # requests with a token that are not the API's
        self.endpoint = ""

    def put(self, name: str, files: dict[str, bytes], **options) -> str:
        """Make a repository with one commit, or add the commit; gives its sha."""
        return self.repos.setdefault(name, Repo(**options)).commit({".gitattributes": b"", **files})


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _etag(name: str, content: bytes) -> str:
    return _sha(content) if name.endswith(LFS) else _blob(content)


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def _answer(self, status: int, content: bytes | dict | list = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content_Type": "application/json", "Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _handle(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        try:
            for pattern, status in self.hub.failing.items():
                if re.search(pattern, request):
                    if not status:  # the line is dead
                        self.close_connection = True
                        return
                    raise _RefusedError(status, "made to fail")
            for pattern, function in _ROUTES:
                if found := re.fullmatch(pattern, request):
                    function(self, *found.groups())
                    return
            raise _RefusedError(404, f"no such route: {request}")
        except _RefusedError as error:
            headers = {"X_Error_Message": error.message, **({"X_Error_Code": error.code} if error.code else {})}
            self._answer(error.status, {"error": error.message}, **headers)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _role(self) -> str:
        """Role of the request's token; '' without one."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not token:
            return ""
        if scheme != "Bearer" or token not in self.hub.tokens:
            raise _RefusedError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _repo(self, name: str) -> Repo:
        role, repo = self._role(), self.hub.repos.get(name)
        if repo is None or (repo.private and not role):
            raise _RefusedError(404 if role else 401, "Repository not found", "RepoNotFound")
        return repo

    def _writable(self, name: str) -> Repo:
        repo = self._repo(name)
        if self._role() != "write" or name.partition("/")[0] not in self.hub.owners:
            raise _RefusedError(403, f"you have no right to write in {name}")
        return repo

    def _at(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        if not (found := repo.at(revision)):
            raise _RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def whoami(self) -> None:
        if not (role := self._role()):
            raise _RefusedError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": role}
        orgs = [{"type": "org", "name": name} for name in self.hub.owners]
        auth = {"type": "access_token", "accessToken": token}
        self._answer(200, {"type": "user", "name": "somebody", "orgs": orgs, "auth": auth})

    def info(self, name: str, revision: str | None) -> None:
        repo = self._repo(name)
        sha, files = self._at(repo, revision or "main")
        about = {"id": name, "sha": sha, "private": repo.private, "gated": repo.gated and "auto"}
        self._answer(200, about | {"siblings": [{"rfilename": name} for name in sorted(files)], "tags": []})

    def may_write(self, name: str) -> None:
        self._writable(name)
        self._answer(200, {})

    def tree(self, name: str, revision: str) -> None:
        _, files = self._at(self._repo(name), revision)
        listed = []
        for path, content in sorted(files.items()):
            one = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
            if path.endswith(LFS):
                one["lfs"] = {"oid": _sha(content), "size": len(content), "pointerSize": 134}
            listed.append(one)
        self._answer(200, listed)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name)
        if repo.gated:
            raise _RefusedError(403, f"Access to model {name} is restricted", "GatedRepo")
        sha, files = self._at(repo, revision)
        if path not in files:
            raise _RefusedError(404, "Entry not found", "EntryNotFound")
        headers = {"X_Repo_Commit": sha, "ETag": f'"{_etag(path, files[path])}"'}
        if not path.endswith(LFS):
            self._answer(200, files[path], **headers)
            return
        linked = {"X_Linked_Etag": headers["ETag"], "X_Linked_Size": str(len(files[path]))}
        location = f"{self.hub.endpoint.replace('127.0.0.1', 'localhost')}/cdn/{_sha(files[path])}"
        self.hub.objects[_sha(files[path])] = files[path]
        self._answer(302, b"", Location=location, **headers, **linked)

    def stored(self, oid: str) -> None:
        self._no_token()
        self._answer(200, self.hub.objects[oid], ETag=f'"{oid}"')

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if self._role() != "write" or asked["organization"] not in self.hub.owners:
            raise _RefusedError(403, f"you have no right to create a model under {asked['organization']}")
        if name in self.hub.repos:
            raise _RefusedError(409, "You already created this model repo")
        self.hub.put(name, {}, private=asked.get("visibility") == "private")
        self._answer(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})

    def validate(self) -> None:
        asked = json.loads(self.body)
        head = yaml.safe_load(asked["content"].split("---")[1])
        errors = [{"message": f"{field} is missing"} for field in ("license", "pipeline_tag") if field not in head]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        _, files = self._at(self._writable(name), revision)
        modes = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = {"path": path, "uploadMode": "lfs" if path.endswith(LFS) else "regular", "shouldIgnore": False}
            modes.append(mode | ({"oid": _etag(path, files[path])} if path in files else {}))
        self._answer(200, {"files": modes})

    def batch(self, name: str) -> None:
        self._writable(name)
        objects = []
        for one in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.endpoint}/storage/{one['oid']}"}
            verify = {"href": f"{self.hub.endpoint}/{name}.git/info/lfs/verify"}
            actions = {} if one["oid"] in self.hub.objects else {"actions": {"upload": upload, "verify": verify}}
            objects.append(one | actions)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        self._no_token()
        if _sha(self.body) != oid:
            raise _RefusedError(400, "another content than was said")
        self.hub.objects[oid] = self.body
        self._answer(200)

    def verify(self, name: str) -> None:
        asked = json.loads(self.body)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise _RefusedError(404, "no such object")
        self._answer(200, {})

    def commit(self, name: str, revision: str) -> None:
        repo = self._writable(name)
        sha, files = self._at(repo, revision)
        files, header = dict(files), {}
        for line in self.body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "header":
                header = value
            elif one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif one["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise _RefusedError(400, f"unknown operation {one['key']}")
        if header.get("parentCommit", sha) != sha:
            raise _RefusedError(412, "A commit has happened since")
        oid = repo.commit(files, header["summary"])
        self._answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}"})

    def _no_token(self) -> None:
        if "Authorization" in self.headers:
            self.hub.leaks.append(self.path)


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    (r"GET /api/whoami-v2", _Handler.whoami),
    (rf"GET /api/models/{_NAME}(?:/revision/(.+))?", _Handler.info),
    (rf"GET /api/models/{_NAME}/auth-check/write", _Handler.may_write),
    (rf"GET /api/models/{_NAME}/tree/(.+)", _Handler.tree),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (r"(?:GET|HEAD) /cdn/(\w+)", _Handler.stored),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (rf"POST /{_NAME}\.git/info/lfs/verify", _Handler.verify),
    (r"PUT /storage/(\w+)", _Handler.store),
    (rf"POST /api/models/{_NAME}/commit/(.+)", _Handler.commit),
)


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on loopback, at its `endpoint`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
