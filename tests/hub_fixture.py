"""Fixtures that bring the genuine huggingface_hub client and the Hub of hub_server.py together.

In a test module `pytest_plugins = ["hub_fixture"]` (an imported fixture, ruff would call redefined), and then

    def test_pull(hub, monkeypatch):
        hub.create("alice/net")
        hub.commit("alice/net", {"config.json": b"{}"})
        monkeypatch.setenv("HF_TOKEN", "hf_alice")            # logged in; otherwise the caller is anonymous
        huggingface_hub.snapshot_download("alice/net")

- `hub`: an empty Hub for this test, and the client of this process pointed at it, with a fresh HF_HOME. All
  of it is taken back afterwards, so that the rest of the suite stays offline. For what runs in this process.
  The client's pauses between retries are cut to 10 ms; its timeouts are constants.HF_HUB_DOWNLOAD_TIMEOUT and
  HF_HUB_ETAG_TIMEOUT (10 s each), which a test of `slow` patches.
- `run_with_hub(server, argv, token=..., home=...)`: a subprocess whose environment points at the server. For
  scripts and `python -m` end to end, and where code reads HF_* at its import. Its client waits 1, 2, 4...
  seconds between retries: inject one fault, not five. `start_with_hub`, with the same arguments, does not
  wait for it: for a push that is killed half way (from a `server.before`).
- `client_at(server, home)`: the context manager inside `hub`, for fixtures of a wider scope with an own Hub.

Code that copied a constant with `from huggingface_hub.constants import ...` keeps the old value: a test of it
patches that name itself, or runs in a subprocess. (PYTEST_DONT_REWRITE: tests import the functions first.)
"""

import contextlib
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

REPOSITORY = Path(__file__).resolve().parents[1]


def environment(server: Hub, home: str | os.PathLike[str], token: str | None = None) -> dict[str, str]:
    """The variables that point a client at the server; all but HF_TOKEN are read when it is imported."""
    variables = dict.fromkeys(
        ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"), "1"
    )
    variables |= dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
    variables |= {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"}
    return variables | ({"HF_TOKEN": token} if token else {})


REMOVED = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_OIDC_RESOURCE"),
    *("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HUGGINGFACE_ASSETS_CACHE", "HF_XET_CACHE"),
    *("HUGGINGFACE_CO_STAGING", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "no_proxy"),
)


@contextlib.contextmanager
def client_at(server: Hub, home: str | os.PathLike[str], token: str | None = None) -> Iterator[Hub]:
    """Point the imported client at the server, its caches and tokens at `home`; undone on leaving.

    huggingface_hub copies the environment into `constants` at import, and from there into the endpoint of its
    one module-level HfApi (whose methods are the functions of the package) and a few modules; no default
    argument holds any of it. The shared HTTP client is rebuilt, since it keeps connections and proxies.
    """
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _cache_assets, _cache_manager, _git_credential, _http

    home = Path(home)
    impatient = types.SimpleNamespace(**vars(time))
    impatient.sleep = lambda seconds: time.sleep(min(seconds, 0.01))
    progress = sys.modules["huggingface_hub.utils.tqdm"]  # the package's attribute `tqdm` is the class
    with pytest.MonkeyPatch.context() as patch:
        for name in REMOVED:
            patch.delenv(name, raising=False)
        for name, value in environment(server, home, token).items():
            patch.setenv(name, value)
        constants_of_test = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_URL_HOSTS": constants.HF_URL_HOSTS | {"127.0.0.1"},
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
            "HF_ASSETS_CACHE": str(home / "assets"),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
        }
        for name, value in constants_of_test.items():
            patch.setattr(constants, name, value)
        patch.setattr(progress, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        patch.setattr(_git_credential, "ENDPOINT", server.url)
        patch.setattr(_cache_manager, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(_cache_assets, "HF_ASSETS_CACHE", str(home / "assets"))
        patch.setattr(_http, "_HUB_ORIGINS", _http._HUB_ORIGINS | {_http._url_origin(server.url)})
        patch.setattr(hf_api.api, "endpoint", server.url)
        patch.setattr(hf_api.api, "_whoami_cache", {}, raising=False)
        patch.setattr(_http, "time", impatient)
        patch.setattr(file_download, "time", impatient)
        _http.close_session()
        try:
            yield server
        finally:
            _http.close_session()


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The one server of the session; tests take `hub`, which empties it for them."""
    with Hub(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def hub(hub_server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """An empty Hub, and this process's client pointed at it: an anonymous caller with an empty cache."""
    hub_server.reset(tmp_path_factory.mktemp("hub_state"))
    with client_at(hub_server, tmp_path_factory.mktemp("hf_home")):
        yield hub_server
    assert not hub_server.errors, f"the test Hub itself failed: {hub_server.errors!r}"


def start_with_hub(
    server: Hub,
    argv: Sequence[str],
    token: str | None = None,
    home: str | os.PathLike[str] | None = None,
    cwd: str | os.PathLike[str] = REPOSITORY,
    **environ: str,
) -> subprocess.Popen[str]:
    """Start `argv` ("python" is this interpreter) against the server; its output goes to pipes, as text.

    `home` is its HF_HOME: by default one in the server's folder, shared by the subprocesses of a test, so
    that a second run finds what the first one cached. Further keywords are environment variables.
    """
    variables = {name: value for name, value in os.environ.items() if name not in REMOVED}
    variables |= environment(server, home or server.folder / "home", token) | {"OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    command = [sys.executable if argv[0] == "python" else argv[0], *argv[1:]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, env=variables | environ, cwd=cwd, text=True, **pipes)


def run_with_hub(
    server: Hub, argv: Sequence[str], timeout: float = 120, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run `argv` against the server to its end (`more`: token, home, cwd, environment, as above)."""
    with start_with_hub(server, argv, **more) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
