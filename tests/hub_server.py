"""A Hugging Face Hub on 127.0.0.1, for tests that push and pull with the genuine huggingface_hub 2.x client.

    with Hub(folder) as server:                               # tests take the fixture: see hub_fixture.py
        server.url                                            # http://127.0.0.1:PORT
        server.tokens                                         # {"hf_alice": Token("alice"), ...}, see TOKENS
        server.create("alice/net", type="model", private=False, owner_token=None)
        sha = server.commit("alice/net", {"a.json": b"{}"}, message="...", delete=["b.bin"], revision="main")
        server.files("alice/net", revision="main")            # {path: bytes}, with the Hub's .gitattributes
        server.head("alice/net"); server.log_of("alice/net")  # the sha; [(sha, title), ...], newest first
        server.exists("alice/net")
        server.requests                                       # [("GET", "/api/models/alice/net"), ...]
        server.asked("POST", "/commit/")                      # those that match; `not server.asked()`: none

Faults are set by the test. `path_regex` is searched in the unquoted path with its query (for instance
"/alice/net/resolve/main/model.safetensors", "/api/models/alice/net/commit/main?create_pr=1"); `times=None` is
for ever; all but the last four take `method="GET"` too, to tell HEAD from GET:

        server.fail(method, path_regex, status=503, times=1, headers=None, message="...")  # method None: any
        server.cut(path_regex, after_bytes=0, times=1, reset=False)  # of a GET's answer, a PUT's, POST's body
        server.lose_answer(path_regex, times=1)                # the work is done, then the connection closes
        server.slow(path_regex, seconds, times=None)           # waits before the answer
        server.before(path_regex, callable, times=1)           # runs before the answer: say a server.commit
        server.corrupt(path_regex, times=None)                 # right length and ETag, every byte inverted
        server.lie_about_size(path_regex, by=1, times=None)    # HEAD, tree and paths-info announce size + by
        server.heal()                                          # takes all of them back
        server.page_size = 2                                   # not a fault: entries per page of any listing

The direct methods take `type="dataset"` or `"space"` too. `server.unknown` lists the requests that no route
answers, `server.errors` the exceptions of the server itself (the fixture fails on those). With
`server.cdn = True` LFS files redirect to http://localhost:PORT/cdn/..., to the client a foreign host.
Standard library, and the PyYAML that the client brings for the front matter of the cards.
"""

import base64
import contextlib
import fnmatch
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml


@dataclass(frozen=True)
class Token:
    """An access token: its user, "write" or "read", and the organizations that the user belongs to."""

    user: str
    role: str = "write"
    orgs: tuple[str, ...] = ()


TOKENS = {
    "hf_alice": Token("alice", orgs=("laboratory",)),
    "hf_alice_read": Token("alice", role="read", orgs=("laboratory",)),
    "hf_bob": Token("bob"),
}
LFS_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".npy", ".npz"),
    *(".zip", ".gz", ".parquet", ".arrow", ".pkl", ".h5"),
)
GITATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
).encode()
REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
WEB = r"/(?P<kind>datasets/|spaces/)?(?P<id>[^/]+/[^/]+)"
ROUTES: list[tuple[str, re.Pattern[str], str]] = []


class Refusal(Exception):
    """An answer other than success: HTTP status, message and the Hub's X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class Cut(Exception):
    """The connection is to be closed here; `reset` sends RST instead of FIN."""

    reset = False


@dataclass
class Request:
    """One request as the routes see it: `groups` of the matched path, unquoted, and the caller's token."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes
    caller: Token | None = None
    groups: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")


@dataclass
class Answer:
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass
class Fault:
    kind: str
    method: str | None
    pattern: re.Pattern[str]
    times: int | None
    value: dict[str, Any]


def route(methods: str, pattern: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a method of Hub for requests whose whole (still quoted) path matches."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        ROUTES.extend((method, re.compile(pattern), function.__name__) for method in methods.split())
        return function

    return register


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str, sample: bytes, size: int) -> bool:
    """By suffix, or where the file is binary or above 10 MiB."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > 10 * 2**20 or b"\0" in sample[:512])


def front_matter(readme: bytes) -> dict[str, Any]:
    """The YAML block at the head of a card, {} where there is none; ValueError where it is no mapping."""
    match = re.match(
        r"\s*---\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|$)", readme.decode("utf-8", "replace"), re.DOTALL
    )
    try:
        card = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        raise ValueError(f"the YAML of the card cannot be read: {error}") from error
    if not isinstance(card or {}, dict):
        raise ValueError(f"the YAML of the card is a {type(card).__name__}, not a mapping")
    return json.loads(json.dumps(card or {}, default=str))  # YAML dates as text, as the Hub gives them


def card_tags(card: dict[str, Any]) -> list[str]:
    """The tags that the Hub derives from a card: its own, library, task, language, dataset:, license:..."""

    def entries(key: str) -> list[str]:
        value = card.get(key) or []
        return [str(entry) for entry in (value if isinstance(value, list) else [value])]

    tags = entries("library_name") + entries("pipeline_tag") + entries("tags") + entries("language")
    tags += [f"dataset:{name}" for name in entries("datasets")] + [
        f"license:{name}" for name in entries("license")
    ]
    tags += [f"base_model:{name}" for name in entries("base_model")] + ["model-index"] * (
        "model-index" in card
    )
    return [*dict.fromkeys(tags), "region:us"]


class Hub:
    """A Hub whose whole state lies in `folder`; another Hub there goes on where this one stopped."""

    def __init__(self, folder: str | os.PathLike[str], port: int = 0) -> None:
        self._lock = threading.RLock()
        self._milliseconds = 0
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.hub = self
        self._thread: threading.Thread | None = None
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.reset(folder)

    def reset(self, folder: str | os.PathLike[str]) -> None:
        """Start over in another folder: its repositories, the usual tokens, no faults, no requests."""
        with self._lock:
            self.folder = Path(folder)
            (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
            (self.folder / "repositories").mkdir(exist_ok=True)
            repos = [
                json.loads(file.read_text()) for file in sorted((self.folder / "repositories").glob("*.json"))
            ]
            self._repos = {f"{repo['type']}s/{repo['id']}": repo for repo in repos}
            self.tokens = dict(TOKENS)
            self.requests: list[tuple[str, str]] = []
            self.unknown: list[tuple[str, str]] = []
            self.errors: list[BaseException] = []
            self.page_size, self.cdn = 1000, False
            self.heal()

    def start(self) -> "Hub":
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True, name="hub"
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close the listening socket and every open connection; wait for their threads."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.close_connections()
        self._server.server_close()

    def __enter__(self) -> "Hub":
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # ---- what a test does directly -------------------------------------------------------------------------

    def create(
        self,
        repo_id: str,
        type: str = "model",
        private: bool = False,
        owner_token: str | None = None,
        **more: Any,
    ) -> str:
        """Create a repository with the Hub's first commit (.gitattributes); returns its sha."""
        owner = self.tokens[owner_token].user if owner_token else repo_id.split("/")[0]
        with self._lock:
            if f"{type}s/{repo_id}" in self._repos:
                raise ValueError(f"the {type} {repo_id} exists already")
            repo = {
                "id": repo_id,
                "type": type,
                "private": private,
                "owner": owner,
                "created": self._now(),
                **more,
            }
            repo |= {"branches": {}, "tags": {}, "commits": {}, "discussions": []}
            self._repos[f"{type}s/{repo_id}"] = repo
            files = {".gitattributes": self._entry(".gitattributes", GITATTRIBUTES)}
            return self._add_commit(repo, "main", files, "initial commit", owner)

    def commit(
        self,
        repo_id: str,
        files: dict[str, bytes],
        message: str = "a commit of the test",
        type: str = "model",
        revision: str = "main",
        delete: Iterable[str] = (),
    ) -> str:
        """Commit as if somebody else had; returns the new sha (the old one where nothing changes)."""
        with self._lock:
            repo = self._repos[f"{type}s/{repo_id}"]
            tree = dict(self._at(repo, revision)[1]["files"])
            for path in delete:
                del tree[path]
            tree |= {path: self._entry(path, data) for path, data in files.items()}
            return self._add_commit(repo, revision, tree, message, repo["owner"])

    def files(self, repo_id: str, revision: str = "main", type: str = "model") -> dict[str, bytes]:
        with self._lock:
            tree = self._at(self._repos[f"{type}s/{repo_id}"], revision)[1]["files"]
            return {path: self._blob(entry["sha256"]).read_bytes() for path, entry in sorted(tree.items())}

    def head(self, repo_id: str, revision: str = "main", type: str = "model") -> str:
        with self._lock:
            return self._at(self._repos[f"{type}s/{repo_id}"], revision)[0]

    def log_of(self, repo_id: str, revision: str = "main", type: str = "model") -> list[tuple[str, str]]:
        with self._lock:
            repo = self._repos[f"{type}s/{repo_id}"]
            return [(sha, repo["commits"][sha]["title"]) for sha in self._history(repo, revision)]

    def exists(self, repo_id: str, type: str = "model") -> bool:
        return f"{type}s/{repo_id}" in self._repos

    def asked(self, method: str | None = None, path_regex: str = "") -> list[tuple[str, str]]:
        """The recorded requests of this method whose path matches."""
        return [(m, p) for m, p in self.requests if method in (None, m) and re.search(path_regex, p)]

    # ---- faults --------------------------------------------------------------------------------------------

    def fail(
        self,
        method: str | None,
        path_regex: str,
        status: int = 503,
        times: int | None = 1,
        headers: dict[str, str] | None = None,
        message: str = "a fault set by the test",
    ) -> None:
        self._fault("fail", method, path_regex, times, status=status, headers=headers or {}, message=message)

    def cut(
        self,
        path_regex: str,
        after_bytes: int = 0,
        times: int | None = 1,
        method: str | None = None,
        reset: bool = False,
    ) -> None:
        self._fault("cut", method, path_regex, times, after=after_bytes, reset=reset)

    def lose_answer(self, path_regex: str, times: int | None = 1, method: str | None = None) -> None:
        self._fault("lose", method, path_regex, times)

    def slow(
        self, path_regex: str, seconds: float, times: int | None = None, method: str | None = None
    ) -> None:
        self._fault("slow", method, path_regex, times, seconds=seconds)

    def corrupt(self, path_regex: str, times: int | None = None) -> None:
        self._fault("corrupt", "GET", path_regex, times)

    def lie_about_size(self, path_regex: str, by: int = 1, times: int | None = None) -> None:
        self._fault("lie", None, path_regex, times, by=by)

    def before(
        self,
        path_regex: str,
        callable: Callable[[], Any],
        times: int | None = 1,
        method: str | None = None,
    ) -> None:
        self._fault("before", method, path_regex, times, call=callable)

    def heal(self) -> None:
        self._faults: list[Fault] = []

    def _fault(self, kind: str, method: str | None, path_regex: str, times: int | None, **value: Any) -> None:
        with self._lock:
            self._faults.append(Fault(kind, method, re.compile(path_regex), times, value))

    def take(self, kind: str, method: str, path: str) -> dict[str, Any] | None:
        """The first fault of this kind that is due here; one of its times is used up."""
        with self._lock:
            for fault in self._faults:
                due = fault.kind == kind and fault.times != 0 and fault.method in (None, method)
                if due and fault.pattern.search(path):
                    fault.times = fault.times - 1 if fault.times else None
                    return fault.value
        return None

    # ---- repositories and commits --------------------------------------------------------------------------

    def _now(self) -> str:
        """The time in milliseconds, never twice the same: listings sort by it."""
        with self._lock:
            self._milliseconds = max(self._milliseconds + 1, time.time_ns() // 1_000_000)
            seconds, rest = divmod(self._milliseconds, 1000)
            return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:03d}Z"

    def _blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256

    def _store(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        if not self._blob(sha256).exists():
            partial = self._blob(f"{sha256}.{threading.get_ident()}")
            partial.write_bytes(data)
            os.replace(partial, self._blob(sha256))
        return sha256

    def _entry(self, path: str, data: bytes, lfs: bool | None = None) -> dict[str, Any]:
        """A file of a commit: git's oid (of the pointer, for LFS), sha256 of the bytes, and their number."""
        if path.startswith("/") or ".." in path.split("/") or not path:
            raise Refusal(400, f"the path {path!r} leaves the repository")
        lfs = is_lfs(path, data, len(data)) if lfs is None else lfs
        sha256 = self._store(data)
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        )
        return {"oid": git_oid(pointer if lfs else data), "sha256": sha256, "size": len(data), "lfs": lfs}

    def _add_commit(
        self,
        repo: dict[str, Any],
        revision: str,
        files: dict[str, Any],
        message: str,
        author: str,
        text: str = "",
    ) -> str:
        """Move a branch to a new commit of these files; as on the Hub, equal files make no commit."""
        parent = repo["branches"].get(revision)
        if parent and repo["commits"][parent]["files"] == files:
            return parent
        commit = {
            "parent": parent,
            "title": message,
            "message": text,
            "date": self._now(),
            "author": author,
            "files": files,
        }
        salt = f"{repo['type']} {repo['id']} {len(repo['commits'])} {time.time_ns()}"
        sha = hashlib.sha1((json.dumps(commit, sort_keys=True) + salt).encode()).hexdigest()
        repo["commits"][sha] = commit
        repo["branches"][revision] = sha
        self._save(repo)
        return sha

    def _state_file(self, repo: dict[str, Any]) -> Path:
        return self.folder / "repositories" / f"{repo['type']}s--{repo['id'].replace('/', '--')}.json"

    def _save(self, repo: dict[str, Any]) -> None:
        file = self._state_file(repo)
        file.with_suffix(".new").write_text(json.dumps(repo))
        os.replace(file.with_suffix(".new"), file)

    def _at(self, repo: dict[str, Any], revision: str) -> tuple[str, dict[str, Any]]:
        """Sha and commit of a branch, refs/pr/N, tag, or sha (seven digits at least)."""
        revision = revision.removeprefix("refs/heads/")
        sha = repo["branches"].get(revision) or repo["tags"].get(revision)
        if sha is None and re.fullmatch("[0-9a-f]{7,40}", revision):
            sha = next((known for known in repo["commits"] if known.startswith(revision)), None)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo["commits"][sha]

    def _history(self, repo: dict[str, Any], revision: str) -> list[str]:
        shas = [self._at(repo, revision)[0]]
        while parent := repo["commits"][shas[-1]]["parent"]:
            shas.append(parent)
        return shas

    def _may_see(self, repo: dict[str, Any], caller: Token | None) -> bool:
        return not repo["private"] or self._owns(repo, caller)

    def _owns(self, repo: dict[str, Any], caller: Token | None) -> bool:
        names = (caller.user, *caller.orgs) if caller else ()
        return repo["owner"] in names or repo["id"].split("/")[0] in names

    def _repo(self, request: Request, write: bool = False, pull_request: bool = False) -> dict[str, Any]:
        """The repository that a request names, if the caller may see (write: change) it."""
        kind = (request.groups.get("kind") or "models").rstrip("/")
        repo = self._repos.get(f"{kind}/{request.groups['id']}")
        if repo is None or not self._may_see(repo, request.caller):
            status, message = (
                (404, "Repository not found") if request.caller else (401, "Invalid username or password.")
            )
            raise Refusal(status, message, "RepoNotFound")
        if write and request.caller is None:
            raise Refusal(401, "Invalid username or password.")
        if write and (
            request.caller.role != "write" or not (pull_request or self._owns(repo, request.caller))
        ):
            raise Refusal(403, f"you have no right to write to {repo['id']}")
        return repo

    def _link(self, repo: dict[str, Any], rest: str = "") -> str:
        prefix = "" if repo["type"] == "model" else repo["type"] + "s/"
        return f"{self.url}/{prefix}{repo['id']}{rest}"

    # ---- answers: accounts and repositories ----------------------------------------------------------------

    def answer(self, request: Request) -> Any:
        """Find the route and run it; the lock makes every request atomic."""
        for method, pattern, name in ROUTES:
            match = pattern.fullmatch(request.path) if method == request.method else None
            if match:
                request.groups = {key: unquote(value) for key, value in match.groupdict().items() if value}
                with self._lock:
                    request.caller = self._caller(request)
                    return getattr(self, name)(request)
        self.unknown.append((request.method, unquote(request.path)))
        raise Refusal(404, f"this test Hub has no route for {request.method} {request.path}")

    def _caller(self, request: Request) -> Token | None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if given and given not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens.get(given)

    @route("GET", "/api/whoami-v2")
    def _whoami(self, request: Request) -> Any:
        caller = request.caller
        if caller is None:
            raise Refusal(401, "Invalid username or password.")
        access = {"displayName": "test", "role": caller.role}
        orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in caller.orgs]
        auth = {"type": "access_token", "accessToken": access}
        who = {"type": "user", "name": caller.user, "fullname": caller.user, "avatarUrl": "/avatars/0.svg"}
        return {**who, "orgs": orgs, "auth": auth}

    def _named(self, request: Request) -> tuple[str, str]:
        if request.caller is None:
            raise Refusal(401, "Invalid username or password.")
        wanted = request.json()
        namespace = wanted.get("organization") or request.caller.user
        if request.caller.role != "write" or namespace not in (request.caller.user, *request.caller.orgs):
            raise Refusal(403, f"you have no right to create or delete repositories of {namespace}")
        return f"{namespace}/{wanted['name']}", wanted.get("type") or "model"

    @route("POST", "/api/repos/create")
    def _create_repo(self, request: Request) -> Any:
        repo_id, type = self._named(request)
        wanted = request.json()
        repo = self._repos.get(f"{type}s/{repo_id}")
        if repo:
            raise Refusal(409, f"You already created this {type} repo: {repo_id}", url=self._link(repo))
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        more = {"sdk": wanted["sdk"]} if "sdk" in wanted else {}
        self.create(repo_id, type, private, **more)
        self._repos[f"{type}s/{repo_id}"]["owner"] = request.caller.user
        self._save(self._repos[f"{type}s/{repo_id}"])
        return {"url": self._link(self._repos[f"{type}s/{repo_id}"]), "name": repo_id}

    @route("DELETE", "/api/repos/delete")
    def _delete_repo(self, request: Request) -> Any:
        repo_id, type = self._named(request)
        if not self.exists(repo_id, type):
            raise Refusal(404, "Repository not found", "RepoNotFound")
        self._state_file(self._repos.pop(f"{type}s/{repo_id}")).unlink()
        return {}

    @route("PUT", f"{REPO}/settings")
    def _settings(self, request: Request) -> Any:
        repo = self._repo(request, write=True)
        wanted = request.json()
        repo["private"] = wanted.get("private", wanted.get("visibility", "") == "private")
        self._save(repo)
        return {"private": repo["private"]}

    @route("GET", f"{REPO}/auth-check(?P<write>/write)?")
    def _auth_check(self, request: Request) -> Any:
        self._repo(request, write="write" in request.groups)
        return {}

    @route("POST", "/api/validate-yaml")
    def _validate_yaml(self, request: Request) -> Any:
        try:
            card = front_matter(request.json()["content"].encode())
        except ValueError as error:
            raise Refusal(400, "invalid metadata", errors=[{"message": str(error)}], warnings=[]) from error
        empty = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": empty}

    # ---- answers: what repositories hold -------------------------------------------------------------------

    def _card(self, commit: dict[str, Any]) -> dict[str, Any]:
        if "README.md" not in commit["files"]:
            return {}
        try:
            return front_matter(self._blob(commit["files"]["README.md"]["sha256"]).read_bytes())
        except ValueError:
            return {}

    def _describe(self, repo: dict[str, Any], revision: str = "main", blobs: bool = False) -> dict[str, Any]:
        """Everything the Hub says about a repository at a revision."""
        sha, commit = self._at(repo, revision)
        card = self._card(commit)
        siblings = [{"rfilename": path} for path in sorted(commit["files"])]
        for sibling in siblings if blobs else []:
            shown = self._shown(sibling["rfilename"], commit["files"][sibling["rfilename"]])
            sibling |= {"size": shown["size"], "blobId": shown["oid"]}
            if "lfs" in shown:
                sibling["lfs"] = shown["lfs"] | {"sha256": shown["lfs"]["oid"]}
        description = {"_id": hashlib.sha1(repo["id"].encode()).hexdigest()[:24], "id": repo["id"]}
        description |= {"author": repo["id"].split("/")[0], "private": repo["private"], "gated": False}
        description |= {"disabled": False, "downloads": 0, "likes": 0, "sha": sha, "tags": card_tags(card)}
        description |= {"lastModified": commit["date"], "createdAt": repo["created"], "siblings": siblings}
        description |= {
            key: card[key] for key in ("library_name", "pipeline_tag", "model-index") if key in card
        }
        description |= {"modelId": repo["id"]} if repo["type"] == "model" else {}
        description |= {"sdk": repo["sdk"]} if "sdk" in repo else {}
        return description | ({"cardData": card} if card else {})

    @route("GET", f"{REPO}(/revision/(?P<revision>[^/]+))?")
    def _info(self, request: Request) -> Any:
        described = self._describe(
            self._repo(request), request.groups.get("revision", "main"), request.flag("blobs")
        )
        wanted = request.query.get("expand")
        return (
            described
            if wanted is None
            else {k: v for k, v in described.items() if k in ("_id", "id", *wanted)}
        )

    @route("GET", "/api/(?P<kind>models|datasets|spaces)")
    def _list(self, request: Request) -> Any:
        """By author, filter (each of them among the tags), search; sort, limit, full, cardData, expand."""
        query = {key: values[-1] for key, values in request.query.items()}
        filters = [tag for value in request.query.get("filter", []) for tag in value.split(",")]
        filters += [query["pipeline_tag"]] if "pipeline_tag" in query else []
        repos = [repo for repo in self._repos.values() if repo["type"] + "s" == request.groups["kind"]]
        found = [self._describe(repo) for repo in repos if self._may_see(repo, request.caller)]
        found = [one for one in found if query.get("author", one["author"]) == one["author"]]
        found = [one for one in found if query.get("search", "").lower() in one["id"].lower()]
        found = [one for one in found if all(tag in one["tags"] for tag in filters)]
        if query.get("sort") in ("lastModified", "createdAt"):
            found.sort(key=lambda one: one[query["sort"]], reverse=True)
        shown = {
            "_id",
            "id",
            "modelId",
            "likes",
            "private",
            "downloads",
            "tags",
            "pipeline_tag",
            "library_name",
        }
        shown |= {"createdAt", "sdk", *request.query.get("expand", [])}
        shown |= {"author", "gated", "lastModified", "sha", "siblings"} if request.flag("full") else set()
        shown |= {"cardData"} if request.flag("cardData") else set()
        return self._page(request, [{k: v for k, v in one.items() if k in shown} for one in found])

    def _page(self, request: Request, entries: list[Any]) -> Answer:
        """A page of a listing, with the Link header to the next one."""
        start = int(request.query.get("cursor", ["0"])[0])
        end = start + min(int(request.query.get("limit", [self.page_size])[0]), self.page_size)
        rest = [(key, value) for key, values in request.query.items() if key != "cursor" for value in values]
        link = "&".join(
            f"{quote(key)}={quote(value, safe='')}" for key, value in [*rest, ("cursor", str(end))]
        )
        headers = {"Link": f'<{self.url}{request.path}?{link}>; rel="next"'} if end < len(entries) else {}
        return Answer(json.dumps(entries[start:end]).encode(), headers)

    def _shown(self, path: str, entry: dict[str, Any]) -> dict[str, Any]:
        """A file as tree and paths-info show it."""
        size = entry["size"] + (self.take("lie", "GET", path) or {"by": 0})["by"]
        shown = {"type": "file", "path": path, "oid": entry["oid"], "size": size}
        return shown | (
            {"lfs": {"oid": entry["sha256"], "size": size, "pointerSize": 134}} if entry["lfs"] else {}
        )

    def _tree_entries(self, files: dict[str, Any]) -> list[dict[str, Any]]:
        parents = {"/".join(path.split("/")[:n]) for path in files for n in range(1, path.count("/") + 1)}
        folders = [
            {"type": "directory", "path": p, "oid": git_oid(p.encode()), "size": 0} for p in sorted(parents)
        ]
        return folders + [self._shown(path, entry) for path, entry in sorted(files.items())]

    @route("GET", f"{REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?")
    def _tree(self, request: Request) -> Any:
        files = self._at(self._repo(request), request.groups["revision"])[1]["files"]
        base = request.groups.get("path", "").rstrip("/")
        entries = [e for e in self._tree_entries(files) if not base or e["path"].startswith(base + "/")]
        if base and not entries:
            raise Refusal(404, f"{base} does not exist on {request.groups['revision']}", "EntryNotFound")
        if not request.flag("recursive"):
            entries = [e for e in entries if "/" not in e["path"][len(base) :].lstrip("/")]
        return self._page(request, entries)

    @route("POST", f"{REPO}/paths-info/(?P<revision>[^/]+)")
    def _paths_info(self, request: Request) -> Any:
        files = self._at(self._repo(request), request.groups["revision"])[1]["files"]
        if "json" in request.headers.get("Content-Type", ""):
            paths = request.json()["paths"]
        else:
            paths = parse_qs(request.body.decode()).get("paths", [])
        return [e for e in self._tree_entries(files) if e["path"] in [path.rstrip("/") for path in paths]]

    @route("GET", f"{REPO}/refs")
    def _refs(self, request: Request) -> Any:
        repo = self._repo(request)
        refs: dict[str, list[dict[str, str]]] = {
            "branches": [],
            "converts": [],
            "tags": [],
            "pullRequests": [],
        }
        for name, sha in repo["branches"].items():
            kind = "pullRequests" if name.startswith("refs/pr/") else "branches"
            ref = name if name.startswith("refs/") else f"refs/heads/{name}"
            refs[kind].append({"name": name.removeprefix("refs/pr/"), "ref": ref, "targetCommit": sha})
        for name, sha in repo["tags"].items():
            refs["tags"].append({"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha})
        return refs

    @route("GET", f"{REPO}/commits/(?P<revision>[^/]+)")
    def _commits(self, request: Request) -> Any:
        repo = self._repo(request)
        commits = []
        for sha in self._history(repo, request.groups["revision"]):
            commit = repo["commits"][sha]
            shown = {key: commit[key] for key in ("title", "message", "date")}
            commits.append({"id": sha, "authors": [{"user": commit["author"]}], **shown})
        return self._page(request, commits)

    @route("POST DELETE", f"{REPO}/branch/(?P<name>[^/]+)")
    def _branch(self, request: Request) -> Any:
        return self._ref(
            request, "branches", request.groups["name"], request.json().get("startingPoint", "main")
        )

    @route("POST", f"{REPO}/tag/(?P<revision>[^/]+)")
    def _tag(self, request: Request) -> Any:
        return self._ref(request, "tags", request.json()["tag"], request.groups["revision"])

    @route("DELETE", f"{REPO}/tag/(?P<name>[^/]+)")
    def _delete_tag(self, request: Request) -> Any:
        return self._ref(request, "tags", request.groups["name"], "")

    def _ref(self, request: Request, kind: str, name: str, start: str) -> Any:
        repo = self._repo(request, write=True)
        if request.method == "DELETE":
            if repo[kind].pop(name, None) is None:
                raise Refusal(404, f"there is no {name} among the {kind}", "RevisionNotFound")
        elif name in repo[kind]:
            raise Refusal(409, f"Reference already exists: {name}")
        else:
            repo[kind][name] = self._at(repo, start)[0]
        self._save(repo)
        return {}

    @route("GET HEAD", f"{WEB}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def _resolve(self, request: Request) -> Answer:
        sha, commit = self._at(self._repo(request), request.groups["revision"])
        entry = commit["files"].get(request.groups["path"])
        if entry is None:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.headers["X-Repo-Commit"] = sha
            raise refusal
        size = entry["size"]
        if request.method == "HEAD":
            size += (self.take("lie", "HEAD", unquote(request.path)) or {"by": 0})["by"]
        etag = entry["sha256"] if entry["lfs"] else entry["oid"]
        headers = {
            "X-Repo-Commit": sha,
            "ETag": f'"{etag}"',
            "Accept-Ranges": "bytes",
            "Content-Length": str(size),
        }
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(size)}
        if entry["lfs"] and self.cdn:
            location = f"{self.url.replace('127.0.0.1', 'localhost')}/cdn/{entry['sha256']}{request.path}"
            return Answer(b"", headers | {"Location": location, "Content-Length": "0"}, 302)
        return self._ranged(request, entry["sha256"], headers)

    @route("GET HEAD", "/cdn/(?P<sha256>[0-9a-f]{64})/.+")
    def _cdn(self, request: Request) -> Answer:
        if "Authorization" in request.headers:
            raise Refusal(400, "a token was sent to the CDN")
        return self._ranged(request, request.groups["sha256"], {"ETag": f'"{request.groups["sha256"]}"'})

    def _ranged(self, request: Request, sha256: str, headers: dict[str, str]) -> Answer:
        """A file, or with a Range header the part that it asks for."""
        data = self._blob(sha256).read_bytes()
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
        if request.method == "HEAD" or asked is None or not any(asked.groups()):
            return Answer(data, headers)
        first = int(asked[1]) if asked[1] else max(0, len(data) - int(asked[2]))
        last = min(int(asked[2]), len(data) - 1) if asked[1] and asked[2] else len(data) - 1
        if first > last:
            refusal = Refusal(416, "the range lies outside of the file")
            refusal.headers["Content-Range"] = f"bytes */{len(data)}"
            raise refusal
        part = data[first : last + 1]
        extent = {"Content-Range": f"bytes {first}-{last}/{len(data)}", "Content-Length": str(len(part))}
        return Answer(part, headers | extent, 206)

    # ---- answers: pushing ----------------------------------------------------------------------------------

    @route("POST", f"{REPO}/preupload/(?P<revision>[^/]+)")
    def _preupload(self, request: Request) -> Any:
        repo = self._repo(request, write=True, pull_request=request.flag("create_pr"))
        files, wanted, answers = self._at(repo, request.groups["revision"])[1]["files"], request.json(), []
        ignored = wanted.get("gitIgnore")
        if ignored is None and ".gitignore" in files:
            ignored = self._blob(files[".gitignore"]["sha256"]).read_text()
        patterns = [
            line.strip().rstrip("/") for line in (ignored or "").splitlines() if line and line[0] != "#"
        ]
        for file in wanted["files"]:
            path, here = file["path"], files.get(file["path"])
            lfs = is_lfs(path, base64.b64decode(file["sample"]), file["size"])
            ignore = any(fnmatch.fnmatch(part, p) for p in patterns for part in [path, *path.split("/")])
            answers.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": ignore})
            if here:
                answers[-1]["oid"] = here["sha256"] if here["lfs"] else here["oid"]
        return {"files": answers, "commitOid": self._at(repo, request.groups["revision"])[0]}

    @route("POST", rf"{WEB}\.git/info/lfs/objects/batch")
    def _lfs_batch(self, request: Request) -> Any:
        self._repo(request, write=True, pull_request="ref" not in request.json())
        objects = []
        for wanted in request.json()["objects"]:
            objects.append({"oid": wanted["oid"], "size": wanted["size"]})
            if not self._blob(wanted["oid"]).exists():
                upload = {"href": f"{self.url}/lfs/{wanted['oid']}", "header": {}}
                objects[-1]["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/lfs/verify"}}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def _lfs_put(self, request: Request) -> Any:
        if hashlib.sha256(request.body).hexdigest() != request.groups["oid"]:
            raise Refusal(400, "the bytes received do not have the sha256 announced")
        self._store(request.body)
        return {}

    @route("POST", "/lfs/verify")
    def _lfs_verify(self, request: Request) -> Any:
        blob = self._blob(request.json()["oid"])
        if not blob.exists() or blob.stat().st_size != request.json()["size"]:
            raise Refusal(404, "the object was not uploaded")
        return {}

    @route("POST", f"{REPO}/commit/(?P<revision>[^/]+)")
    def _commit(self, request: Request) -> Any:
        """Check parentCommit, then add and delete all files at once, on the branch or a new pull request."""
        create_pr = request.flag("create_pr")
        repo = self._repo(request, write=True, pull_request=create_pr)
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        revision = request.groups["revision"].removeprefix("refs/heads/")
        sha, base = self._at(repo, revision)
        if not sha.startswith(header.get("parentCommit") or ""):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        if revision not in repo["branches"]:
            raise Refusal(400, f"{revision} is no branch, nothing can be committed to it")
        files = dict(base["files"])
        for line in lines:
            self._apply(files, line["key"], line["value"])
        if create_pr:
            revision = self._open_pull_request(repo, header["summary"], sha, request.caller)
        author, text = request.caller.user, header.get("description", "")
        sha = self._add_commit(repo, revision, files, header["summary"], author, text)
        made = {
            "success": True,
            "commitOid": sha,
            "commitUrl": self._link(repo, f"/commit/{sha}"),
            "hookOutput": "",
        }
        number = revision.removeprefix("refs/pr/")
        return made | ({"pullRequestUrl": self._link(repo, f"/discussions/{number}")} if create_pr else {})

    def _apply(self, files: dict[str, Any], key: str, value: dict[str, Any]) -> None:
        path = value.get("path", "")
        if key == "file":
            files[path] = self._entry(path, base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if not self._blob(value["oid"]).exists():
                raise Refusal(400, f"{path} points to an LFS object that was not uploaded")
            files[path] = self._entry(path, self._blob(value["oid"]).read_bytes(), lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [
                p
                for p in files
                if p == path or (key == "deletedFolder" and p.startswith(path.rstrip("/") + "/"))
            ]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]

    # ---- answers: discussions ------------------------------------------------------------------------------

    def _open_pull_request(self, repo: dict[str, Any], title: str, sha: str, caller: Token) -> str:
        number = len(repo["discussions"]) + 1
        talk = {
            "num": number,
            "title": title,
            "createdAt": self._now(),
            "status": "open",
            "author": caller.user,
        }
        repo["discussions"].append(talk | {"isPullRequest": True})
        repo["branches"][f"refs/pr/{number}"] = sha
        self._save(repo)
        return f"refs/pr/{number}"

    @route("GET", f"{REPO}/discussions")
    def _discussions(self, request: Request) -> Any:
        repo = self._repo(request)
        talks = [self._talk(repo, talk["num"]) for talk in reversed(repo["discussions"])]
        first = request.query.get("p", ["0"])[0] == "0"
        return {"discussions": talks if first else [], "count": len(talks), "start": 0}

    @route("POST", f"{REPO}/discussions")
    def _discuss(self, request: Request) -> Any:
        repo = self._repo(request, write=True, pull_request=True)
        title = request.json()["title"]
        self._open_pull_request(repo, title, repo["branches"]["main"], request.caller)
        number = len(repo["discussions"])
        if not request.json().get("pullRequest"):
            repo["discussions"][-1]["isPullRequest"] = False
            del repo["branches"][f"refs/pr/{number}"]
        else:
            repo["discussions"][-1]["status"] = "draft"
        self._save(repo)
        return {"num": number, "url": self._link(repo, f"/discussions/{number}"), "pullRequest": True}

    def _talk(self, repo: dict[str, Any], number: int) -> dict[str, Any]:
        if not 0 < number <= len(repo["discussions"]):
            raise Refusal(404, f"there is no discussion {number}")
        talk = repo["discussions"][number - 1]
        shown = talk | {
            "author": {"name": talk["author"]},
            "repo": {"name": repo["id"], "type": repo["type"]},
        }
        changes = {"base": "refs/heads/main", "mergeCommitId": talk.get("merged")}
        return shown | {"events": [], "changes": changes, "filesWithConflicts": [], "diff": ""}

    @route("GET", f"{REPO}/discussions/(?P<number>[0-9]+)")
    def _discussion(self, request: Request) -> Any:
        return self._talk(self._repo(request), int(request.groups["number"]))

    @route("POST", f"{REPO}/discussions/(?P<number>[0-9]+)/merge")
    def _merge(self, request: Request) -> Any:
        """Put the files of a pull request over those of main (files that only main has stay)."""
        repo = self._repo(request, write=True)
        talk = self._talk(repo, int(request.groups["number"]))
        files = self._at(repo, "main")[1]["files"] | self._at(repo, f"refs/pr/{talk['num']}")[1]["files"]
        sha = self._add_commit(repo, "main", files, f"{talk['title']} (#{talk['num']})", request.caller.user)
        repo["discussions"][talk["num"] - 1] |= {"status": "merged", "merged": sha}
        self._save(repo)
        event = {
            "id": sha,
            "type": "status-change",
            "createdAt": self._now(),
            "author": {"name": request.caller.user},
        }
        return {"newStatus": {**event, "data": {"status": "merged"}}}


class _Handler(BaseHTTPRequestHandler):
    """One keep-alive connection: reads a request, applies the faults that are due, sends the answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes: without it each answer waits 40 ms
    server: "_Server"

    def _serve(self) -> None:
        hub, (path, query) = self.server.hub, urlsplit(self.path)[2:4]
        shown = unquote(self.path)
        hub.requests.append((self.command, unquote(path)))
        try:
            body = self._read_body(shown)
            if hook := hub.take("before", self.command, shown):
                self._run_hook(hook["call"])
            if pause := hub.take("slow", self.command, shown):
                self.server.stopping.wait(pause["seconds"])
            request = Request(self.command, path, parse_qs(query, keep_blank_values=True), self.headers, body)
            answer = self._answer(request, shown)
            if hub.take("lose", self.command, shown) is not None:
                raise Cut
            self._send(answer, shown)
        except (Cut, ConnectionError) as cut:
            self._hang_up(isinstance(cut, Cut) and cut.reset)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _run_hook(self, call: Callable[[], Any]) -> None:
        """A hook that raises shows up in the fixture, not as a mere lost connection."""
        try:
            call()
        except Exception as error:
            self.server.hub.errors.append(error)

    def _answer(self, request: Request, shown: str) -> Answer:
        hub = self.server.hub
        try:
            if fault := hub.take("fail", self.command, shown):
                refusal = Refusal(fault["status"], fault["message"])
                refusal.headers |= fault["headers"]
                raise refusal
            answer = hub.answer(request)
        except Refusal as refusal:
            body = json.dumps(refusal.body).encode()
            return Answer(body, {**refusal.headers, "Content-Type": "application/json"}, refusal.status)
        except Exception as error:
            hub.errors.append(error)
            return Answer(repr(error).encode(), {"X-Error-Message": "the test Hub itself failed"}, 500)
        if not isinstance(answer, Answer):
            answer = Answer(json.dumps(answer).encode(), {"Content-Type": "application/json"})
        return answer

    def _read_body(self, shown: str) -> bytes:
        """The request's body, chunked or counted, up to the byte where a cut is due."""
        cut = self.server.hub.take("cut", self.command, shown) if self.command in ("PUT", "POST") else None
        left = cut["after"] if cut else None
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size if left is None else min(size, left - len(body)))
                if left is not None and len(body) >= left:
                    break
                self.rfile.readline()
            else:
                self.rfile.readline()
        else:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length if left is None else min(length, left))
        if cut:
            self._raise_cut(cut)
        return body

    def _send(self, answer: Answer, shown: str) -> None:
        hub, body = self.server.hub, answer.body
        if answer.status < 400 and hub.take("corrupt", self.command, shown) is not None:
            body = bytes(byte ^ 0xFF for byte in body)
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(body))} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = hub.take("cut", self.command, shown) if self.command == "GET" else None
        self.wfile.write(body[: cut["after"]] if cut else body)
        if cut:
            self._raise_cut(cut)

    def _raise_cut(self, cut: dict[str, Any]) -> None:
        exception = Cut()
        exception.reset = cut["reset"]
        raise exception

    def _hang_up(self, reset: bool) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            if reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                socket.close(self.connection.detach())  # at once: socketserver would send FIN before
            else:
                self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr: `server.requests` is the log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for them
    request_queue_size = 64
    hub: Hub

    def __init__(self, *args: Any) -> None:
        self.connections: set[socket.socket] = set()
        self.stopping = threading.Event()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that the client dropped is no error of the server."""

    def close_connections(self) -> None:
        self.stopping.set()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
