"""Requests to the Hub that wait and try again, and faults of the Hub as one sentence with its cure."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, parse_ratelimit_headers

T = TypeVar("T")
TRANSIENT = (429, 500, 502, 503, 504)
NOTHING_HAPPENED = (429, 503)  # the other transient answers may come after the work was done
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
LONGEST_WAIT = 300  # seconds; the rate limits of the Hub count in windows of five minutes
RETRIED_BY_CLIENT = ("/preupload/", "/info/lfs/", "/tree/")  # huggingface_hub tries these six times itself

_TOKEN = re.compile(r"\bhf_\w+")  # a server may repeat what it was sent

log = logging.getLogger(__name__)


class PublishError(RuntimeError):
    """Something kept a model from the Hub; the message names the fault and the cure.

    `status` is the Hub's answer (401, 403, ...), None when it did not come to one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def patiently(call: Callable[[], T], repeatable: bool = True) -> T:
    """The result of `call`, tried again after a wait while the Hub is overloaded or out of reach.

    A call that is not `repeatable`, because doing it twice does harm, is tried again only after answers which
    say that nothing was done. The last error comes through as it is.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except OfflineModeIsEnabled:
            raise
        except HTTPError as error:
            pause = _pause(error, wait, repeatable)
            if pause is None:
                raise
            what = error.response.status_code if isinstance(error, HfHubHTTPError) else type(error).__name__
            log.warning("the Hub: %s; trying again in %.0f s", what, pause)
            time.sleep(pause)
    raise AssertionError("unreachable: the last try returns or raises")


def _pause(error: HTTPError, wait: float | None, repeatable: bool) -> float | None:
    """Seconds until the next try, None when there is to be none."""
    if wait is None:
        return None
    if not isinstance(error, HfHubHTTPError):
        return wait if repeatable else None
    status = error.response.status_code
    if status not in (TRANSIENT if repeatable else NOTHING_HAPPENED):
        return None
    if any(part in str(error.response.request.url) for part in RETRIED_BY_CLIENT):
        return None
    asked = asked_wait(error.response)
    if asked is not None and asked > LONGEST_WAIT:
        return None
    return wait if asked is None else max(wait, asked)


def asked_wait(response: Any) -> float | None:
    """Seconds that the Hub asks to wait, None when it says nothing."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = response.headers.get("retry-after", "").strip()
    return float(value) if value.isascii() and value.isdigit() and len(value) < 10 else None


@contextmanager
def bounded_waits() -> Iterator[None]:
    """Within it huggingface_hub, too, gives up when the Hub asks for more than LONGEST_WAIT seconds.

    By itself it sleeps for as long as a Retry-After header says.
    """

    def refuse(response: Any) -> None:
        asked = asked_wait(response)
        if response.status_code in TRANSIENT and asked is not None and asked > LONGEST_WAIT:
            raise HfHubHTTPError(f"{response.status_code}, retry after {asked:.0f} s", response=response)

    hooks = get_session().event_hooks["response"]
    hooks.append(refuse)
    try:
        yield
    finally:
        hooks.remove(refuse)


def explained(error: BaseException, repo_id: str) -> PublishError:
    """The error of a request about `repo_id` as one sentence with its cure."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HTTPError | OfflineModeIsEnabled):
        cause = cause.__cause__  # the client wraps a failed upload of a file
    if isinstance(cause, OfflineModeIsEnabled):
        return PublishError("the Hub is switched off by HF_HUB_OFFLINE: unset it and try again")
    if isinstance(cause, HfHubHTTPError):
        return _explained_answer(cause, repo_id)
    if isinstance(cause, HTTPError):
        return PublishError(
            f"no connection to the Hub ({type(cause).__name__}): check the network and try again"
        )
    return PublishError(f"{repo_id} was not published: {_one_line(error)}")


def _explained_answer(error: HfHubHTTPError, repo_id: str) -> PublishError:
    status = error.response.status_code
    asked = asked_wait(error.response)
    again = f"try again in {asked:.0f} seconds" if asked else "try again later"
    owner = repo_id.partition("/")[0]
    sentence = {
        400: f"the Hub refuses the request: {_said(error)}",
        401: "the Hub does not know who asks: log in with `hf auth login`, or set HF_TOKEN to a valid token",
        403: f"the token may not write to {repo_id}: make one with write access to {owner} at "
        "https://huggingface.co/settings/tokens, or publish under your own name",
        404: f"the Hub has no {repo_id}, or shows it to others only: check name, branch and token",
        409: f"{repo_id} is in conflict with another change ({_said(error)}): wait a minute and try again",
        412: f"{repo_id} was changed by somebody else twice meanwhile: try again when they are done",
        413: f"the Hub finds the files for {repo_id} too large: pack the weights with --half",
        429: f"the Hub limits the number of requests: {again}",
    }.get(status)
    if sentence is None and status >= 500:
        sentence = f"the Hub has a fault of its own: {again}, see https://status.huggingface.co"
    return PublishError(f"{sentence or _said(error)} ({status})", status)


def _said(error: HfHubHTTPError) -> str:
    return _one_line(error.server_message or error)


def _one_line(error: object) -> str:
    text = " ".join(str(error).split())
    return f"{_TOKEN.sub('hf_...', text):.300}"
