"""The client: replies in the order of the requests, from the file where they are there, else from the server.

Several threads make calls. Failures that heal (429, 5xx, time-outs, broken connections and bodies) are tried again
after a wait that doubles, with jitter, or after what Retry-After says; then everybody waits. Others stop the run with
a sentence, except those that are about one request alone (`Refused`). Calls under way when a run stops are finished
and written down, since they are paid for.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from chatloom.endpoints.budget import Budget
from chatloom.endpoints.recorded import Recorded
from chatloom.endpoints.requests import Refused, Reply, Request
from chatloom.endpoints.settings import EndpointSettings, read_key
from chatloom.endpoints.transport import Cut, Failure, Transport
from chatloom.errors import ChatloomError

FIRST_WAIT = 1.0
PATIENCE = 3600.0  # a longer Retry-After stops the run
AHEAD = 16  # replies for each thread that may wait behind a slow one
# About this request alone: too long, not understood, not allowed. All others are about the set-up.
ABOUT_ONE = frozenset({400, 413, 422, 451})
SECRET_CHARACTERS = 8  # a shorter key is a word such as EMPTY, that local servers ask for; texts may hold it
CURES = {
    401: "check the key that {key} holds",
    402: "the account has no money",
    403: "check what the key of {key} may do",
    404: "check `endpoint.address` and `endpoint.model`",
    405: "check `endpoint.address`; it should end where /chat/completions begins",
    429: "check the account's limits",
}


class EndpointError(ChatloomError):
    """The server does not answer, or will not."""


class _Stopped(Exception):
    """Another thread's call has failed."""


class Endpoint:
    """A client for one endpoint; use in a `with`. `recorded` holds the replies and the calls that count already.

    Raises ChatloomError for a key that is not there, and for settings without address or model.
    """

    def __init__(
        self, settings: EndpointSettings, recorded: Recorded, *, wait: Callable[[float], float] | None = None
    ) -> None:
        for name in ("address", "model"):
            if not getattr(settings, name):
                raise ChatloomError(f"endpoint.{name}: not given; it says {_WHICH[name]}")
        self.settings, self.recorded = settings, recorded
        read_key(settings)  # so that a missing one is told before any work
        self.budget = Budget()
        self._wait = wait or jittered(settings.longest_wait)
        self._transport = Transport(settings.address, settings.seconds, settings.concurrency)
        self._resting_until = 0.0  # on the monotonic clock
        self._replies = 0
        self._lock = threading.Lock()
        self._under_way: set[Cut] = set()

    def __enter__(self) -> Self:
        self.recorded.__enter__()
        limits = self.settings.budget
        self.budget = Budget(
            limits.calls, limits.tokens, spent_calls=self.recorded.calls, spent_tokens=self.recorded.tokens
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.close()
        self.recorded.close()

    def complete(self, request: Request) -> Reply | Refused:
        """One reply; raises as `complete_many` does."""
        return next(iter(self.complete_many([request])))

    def complete_many(self, requests: Iterable[Request]) -> Iterator[Reply | Refused]:
        """One outcome for each request, in order; requests are taken as they are needed.

        Raises EndpointError for failures that do not heal or did not, BudgetSpent where the budget ends: after the
        outcomes before that request have been given.
        """
        run = _Run()
        waiting: collections.deque[tuple[str, Future[Reply | Refused] | None]] = collections.deque()
        asked: dict[str, Future[Reply | Refused]] = {}  # equal requests wait for one call
        source = iter(requests)
        pool = ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="endpoint")
        try:
            while True:
                room = 0 if run.error else AHEAD * self.settings.concurrency - len(waiting)
                for request in itertools.islice(source, room):
                    if request.key not in self.recorded and request.key not in asked:
                        asked[request.key] = pool.submit(self._work, request, run)
                    waiting.append((request.key, asked.get(request.key)))
                if not waiting:
                    return
                key, future = waiting.popleft()
                yield self._outcome(key, future, run)
                asked.pop(key, None)
        except Exception:
            raise
        except BaseException:  # Ctrl-C, or nobody wants the rest
            run.stop.set()
            self._cut_all()
            raise
        finally:
            run.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _outcome(self, key: str, future: Future[Reply | Refused] | None, run: _Run) -> Reply | Refused:
        if future is None:
            reply = self.recorded.get(key)
            assert reply is not None
            return reply
        try:
            return future.result()
        except _Stopped:
            assert run.error is not None
            raise run.error from None

    def _work(self, request: Request, run: _Run) -> Reply | Refused:
        try:
            return self._ask(request, run)
        except BaseException as error:
            run.fail(error)
            raise

    def _ask(self, request: Request, run: _Run) -> Reply | Refused:
        calls = failures = 0
        failure: Failure | None = None
        try:
            while True:
                self._rest(run)
                replies = self._replies
                outcome = self._call(request, calls + 1)
                calls += 1
                if isinstance(outcome, Reply):
                    self.recorded.add(outcome)
                    failure = None
                    self._replies += 1
                    self.budget.check(outcome)
                    return outcome
                failure = self._clean(outcome)
                if failure.status in ABOUT_ONE:
                    return Refused(request.key, failure.status, failure.message, calls)
                # A 429 while others get replies is a queue and no failure.
                failures = 1 if failure.status == 429 and self._replies > replies else failures + 1
                if not failure.heals or failures >= self.settings.tries or (failure.wait or 0) > PATIENCE:
                    raise EndpointError(self._told(failure, failures))
                if failure.wait is None:
                    run.pause(self._wait(failures))
                else:
                    self._resting_until = max(self._resting_until, time.monotonic() + failure.wait)
        finally:
            if failure is not None:
                self.recorded.add_failure(request.key, failure.status, failure.message, calls)

    def _call(self, request: Request, attempt: int) -> Reply | Failure:
        key = read_key(self.settings)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        cut = Cut()
        reserved = self.budget.reserve(request)
        with self._lock:
            self._under_way.add(cut)
        reply = None
        try:
            answer = self._transport.send(request.path, request.body(), headers, cut)
            if isinstance(answer, Failure):
                return answer
            made = reply_of(request.key, answer.values, attempt)
            if isinstance(made, Failure):
                return made
            reply = made if len(key) < SECRET_CHARACTERS or key not in made.text else _without(made, key)
            return reply
        finally:
            with self._lock:
                self._under_way.discard(cut)
            self.budget.settle(reserved, reply)

    def _rest(self, run: _Run) -> None:
        """Wait as long as the server has asked everybody to."""
        while (left := self._resting_until - time.monotonic()) > 0:
            run.pause(left)
        run.pause(0)

    def _clean(self, failure: Failure) -> Failure:
        """What a server says may repeat the key."""
        key = read_key(self.settings)
        text = failure.message.replace(key, "<key>") if len(key) >= SECRET_CHARACTERS else failure.message
        return Failure(failure.status, text, failure.heals, failure.wait)

    def _told(self, failure: Failure, attempts: int) -> str:
        where = f"{self.settings.address} ({self.settings.model})"
        status = f"status {failure.status}: " if failure.status not in (0, 200) else ""
        if (failure.wait or 0) > PATIENCE:
            cure = f"it asks to wait {failure.wait:,.0f} s; run the same command again then"
        elif failure.heals:
            cure = f"tried {attempts} times; replies so far are kept: run the same command again when it is back"
        else:
            named = self.settings.key or "`endpoint.key`"
            cure = CURES.get(failure.status, "check the endpoint's settings").format(key=named)
        return f"endpoint {where}: {status}{failure.message}; {cure}"

    def _cut_all(self) -> None:
        with self._lock:
            for cut in self._under_way:
                cut.now()


class _Run:
    """One `complete_many`: whether to go on, and the first error."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._lock = threading.Lock()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            if self.error is None and not isinstance(error, _Stopped):
                self.error = error
        self.stop.set()

    def pause(self, seconds: float) -> None:
        """Wait; raises _Stopped as soon as the run stops."""
        if self.stop.wait(seconds) if seconds > 0 else self.stop.is_set():
            raise _Stopped


_WHICH = {"address": "where the server is, such as https://HOST/v1", "model": "which model of the server answers"}


def jittered(longest: float) -> Callable[[int], float]:
    """Seconds after the n-th failed try: 1, 2, 4 ... up to `longest`, times a random number from 0.5 to 1."""
    generator = random.Random()  # has no part in what comes out
    return lambda attempt: min(longest, FIRST_WAIT * 2.0 ** min(attempt - 1, 30)) * generator.uniform(0.5, 1.0)


def reply_of(key: str, values: Any, attempts: int) -> Reply | Failure:
    """The reply in an answer's JSON, whichever of the two interfaces it is from."""
    try:
        choice = values["choices"][0]
        text = choice["message"].get("content") if "message" in choice else choice["text"]
        if isinstance(text, list):  # parts, of which some have text
            text = "".join(part.get("text") or "" for part in text)
        usage = values.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt_tokens, completion_tokens = (int(count) if isinstance(count, int | float) else None for count in counts)
        if text is not None and not isinstance(text, str):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return Failure(200, f"an answer without a reply in it: {str(values)[:300]}", heals=True)
    return Reply(
        key=key,
        text=_whole_characters(text or ""),
        finish=str(choice.get("finish_reason") or ""),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        model=str(values.get("model") or ""),
        attempts=attempts,
    )


def _whole_characters(text: str) -> str:
    """Halves of surrogate pairs, which JSON can hold and UTF-8 cannot, as U+FFFD."""
    with contextlib.suppress(UnicodeEncodeError):
        text.encode("utf-8")
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _without(reply: Reply, key: str) -> Reply:
    values = {**vars(reply), "text": reply.text.replace(key, "<key>")}
    return Reply(**values)
