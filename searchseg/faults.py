"""Faults on the way to the Hub: another try after those that pass, and each as a sentence with its cure."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from httpx2 import Response

WAITS = (1.0, 2.0, 4.0)  # seconds before the second, third and fourth try
MOST_WAIT = 30.0  # seconds; a server that asks for more gets no further try
PASSING = {408, 429, 500, 502, 503, 504}  # states of a server that another try may find over
LOGIN = "log in with `hf auth login` or give token="

T = TypeVar("T")


class DownloadError(ValueError):
    """A file that neither the Hub nor its cache gives; the message names the fault and the cure."""


class BrokenDownloadError(DownloadError):
    """A file that did not arrive as the server had announced it; worth another try."""


def patiently(repository: str, attempt: Callable[[], T]) -> T:
    """What `attempt` gives, tried again after each of the faults that pass; any fault is a DownloadError."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    for wait in (*WAITS, None):
        try:
            return attempt()
        except BrokenDownloadError as error:
            fault: DownloadError = error
        except HfHubHTTPError as error:
            fault = DownloadError(_refusal(repository, error.response))
            asked = _retry_after(error.response)
            if error.response.status_code not in PASSING or asked > MOST_WAIT:
                raise fault from error
            wait = None if wait is None else max(wait, asked)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            fault = DownloadError(_unreachable(repository, error))
        except OSError as error:
            raise DownloadError(
                f"the cache {constants.HF_HUB_CACHE} cannot be used: {error.strerror or error}; free some "
                "room, or let HF_HOME name another folder"
            ) from error
        if wait is not None:
            time.sleep(wait)
    raise fault


def _retry_after(response: Response) -> float:
    """Seconds that the server asks to wait; 0 when it does not say."""
    asked = response.headers.get("Retry-After", "")
    return float(asked) if re.fullmatch(r"[0-9]{1,9}", asked) else 0.0


def _unreachable(repository: str, error: Exception) -> str:
    """A sentence for a request without an answer."""
    import httpx2
    from huggingface_hub import constants

    what = f"{type(error).__name__}: {error}"[:120]
    cached = "what is in the cache loads with local_files_only=True"
    if isinstance(error, httpx2.ConnectTimeout) or not isinstance(
        error, (httpx2.TimeoutException, httpx2.RemoteProtocolError, httpx2.ReadError)
    ):
        return (
            f"{repository!r} is no folder here, and the Hub, {constants.ENDPOINT}, cannot be reached "
            f"({what}): check the network and HF_ENDPOINT; {cached}"
        )
    fault = "is too slow" if isinstance(error, httpx2.TimeoutException) else "cuts the connection"
    return f"the Hub, {constants.ENDPOINT}, {fault} for {repository} ({what}): try again later; {cached}"


def _refusal(repository: str, response: Response) -> str:
    """A sentence for an answer that is no file."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    request = (*response.history, response)[0].request  # the last one may have gone to a store of files
    revision, _, name = request.url.path.rpartition("/resolve/")[2].rpartition("/")
    if code == "GatedRepo":
        return f"{repository} is gated: ask for access on its page on the Hub, then {LOGIN}"
    if code == "RevisionNotFound":
        return (
            f"{repository} has no revision {revision!r}: give a branch, tag or commit of it, or none for main"
        )
    if code == "EntryNotFound":
        return (
            f"{repository} has no {name} at {revision}: this is not a searchseg model (and nothing but "
            "safetensors is ever loaded); searchseg.save_pretrained writes one"
        )
    if status == 401 and code != "RepoNotFound" and "authorization" in request.headers:
        return f"the Hub does not accept the token for {repository} (mistyped, expired?): {LOGIN}"
    if status in (401, 404) or code == "RepoNotFound":
        return f"the Hub has no {repository}, or it is private: check the name; if it is private, {LOGIN}"
    if status == 403:
        return f"no access to {repository} (403): ask its owner, and {LOGIN} that may read it"
    if status == 429:
        return (
            f"too many requests for {repository} (429), and the Hub asks to wait "
            f"{_retry_after(response) or 'some'} seconds: try again later, or {LOGIN}, which raises the limit"
        )
    if status in PASSING:
        return f"the Hub is out of order ({status}) for {repository}: try again later"
    return f"the Hub answers {status} for {name} of {repository}: check HF_ENDPOINT and the proxy"
