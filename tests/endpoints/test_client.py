"""The client against a server on this machine: what is tried again, what stops, what is never asked twice."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Answer, Call, Server, failed, said, until

from chatloom.endpoints import BudgetSpent, Endpoint, EndpointError, EndpointSettings, Recorded, Refused, Reply, Request
from chatloom.endpoints.client import jittered, reply_of
from chatloom.endpoints.transport import Failure, asked_to_wait
from chatloom.errors import ChatloomError

KEY = "sk-test-4f9a27c1d8e5"
NO_WAIT = lambda attempt: 0.001


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def settings(server: Server, **values: Any) -> EndpointSettings:
    return EndpointSettings.parse({"address": server.address, "model": "m", "key": "TEST_KEY", "seconds": 10, **values})


def asked(count: int, **values: Any) -> list[Request]:
    return [Request("m", (("user", f"question {i}"),), **values) for i in range(count)]


def run(server: Server, path: Path, requests: list[Request], **values: Any) -> list[Reply | Refused]:
    with Endpoint(settings(server, **values), Recorded(path), wait=NO_WAIT) as endpoint:
        return list(endpoint.complete_many(requests))


def echo(call: Call) -> Answer:
    return said(f"answer to {call.text}")


def texts(outcomes: list[Reply | Refused]) -> list[str]:
    return [outcome.text if isinstance(outcome, Reply) else f"refused {outcome.status}" for outcome in outcomes]


def test_replies_come_in_the_order_of_the_requests_whatever_the_server_takes_for_each(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return said(f"answer to {call.text}", wait=0.05 if call.text.endswith(("0", "3")) else 0.0)

    with Server(script) as server:
        found = run(server, tmp_path / "replies.jsonl", asked(40), concurrency=4)
    assert texts(found) == [f"answer to question {i}" for i in range(40)]
    assert all(call.path == "/v1/chat/completions" for call in server.calls)


def test_no_more_calls_are_under_way_at_once_than_asked_for(tmp_path: Path) -> None:
    now, most, lock = 0, 0, threading.Lock()

    def script(call: Call) -> Answer:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.03)
        with lock:
            now -= 1
        return echo(call)

    with Server(script) as server:
        run(server, tmp_path / "replies.jsonl", asked(20), concurrency=3)
    assert most == 3


def test_a_completion_sends_the_prompt_itself(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    body = {"choices": [{"text": " upon a time", "finish_reason": "length"}], "usage": usage}
    with Server(lambda call: Answer(body=body)) as server:
        asked_for = settings(server, api="completions").request("Once", max_tokens=7, stop=("\n",), temperature=0.5)
        [reply] = run(server, tmp_path / "replies.jsonl", [asked_for])
    assert isinstance(reply, Reply)
    assert (reply.text, reply.finish, reply.tokens) == (" upon a time", "length", 5)
    assert server.calls[0].path == "/v1/completions"
    assert server.calls[0].body == {
        "model": "m", "prompt": "Once", "max_tokens": 7, "stop": ["\n"], "temperature": 0.5,
    }  # fmt: skip


def test_after_a_429_the_client_waits_as_long_as_retry_after_says(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return echo(call) if call.tries else failed(429, "slow down", headers={"Retry-After": "0.4"})

    started = time.monotonic()
    with Server(script) as server:
        [reply] = run(server, tmp_path / "replies.jsonl", asked(1))
    assert isinstance(reply, Reply)
    assert (reply.text, reply.attempts) == ("answer to question 0", 2)
    assert time.monotonic() - started >= 0.4


def test_what_heals_is_tried_again_and_counted(tmp_path: Path) -> None:
    good = {"choices": [{"message": {"content": "x"}}]}
    bad = [
        failed(500, "oops"),
        failed(503, "busy"),
        Answer(200, b"<html>proxy</html>"),
        Answer(200, {"choices": []}),
        Answer(200, {"error": {"message": "overloaded"}}),
        Answer(200, good, send=5),
        Answer(200, good, send=0),
    ]

    def script(call: Call) -> Answer:
        return bad[call.tries] if call.tries < len(bad) else echo(call)

    with Server(script) as server:
        [reply] = run(server, tmp_path / "replies.jsonl", asked(1), tries=len(bad) + 1)
    assert isinstance(reply, Reply)
    assert reply.text == "answer to question 0"
    assert reply.attempts == len(bad) + 1 == len(server.calls)


def test_a_reset_connection_is_tried_again(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return echo(call) if call.tries else Answer(reset=True)

    with Server(script) as server:
        [reply] = run(server, tmp_path / "replies.jsonl", asked(1))
    assert isinstance(reply, Reply)
    assert (reply.text, reply.attempts) == ("answer to question 0", 2)


@pytest.mark.parametrize("slow", [Answer(wait=20.0), said("a long text" * 20, drip=0.1)], ids=["silent", "dripping"])
def test_a_call_ends_at_its_deadline_even_if_bytes_keep_coming(slow: Answer, tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return echo(call) if call.tries else slow

    started = time.monotonic()
    with Server(script) as server:
        [reply] = run(server, tmp_path / "replies.jsonl", asked(1), seconds=0.5)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.attempts) == ("answer to question 0", 2)
    assert 0.5 <= time.monotonic() - started < 5


def test_what_does_not_heal_in_all_tries_stops_with_what_was_seen(tmp_path: Path) -> None:
    with Server(lambda call: failed(503, "no room")) as server:
        with pytest.raises(EndpointError, match=r"status 503: no room .*tried 3 times; replies so far are kept"):
            run(server, tmp_path / "replies.jsonl", asked(1), tries=3)
    assert len(server.calls) == 3


def test_a_429_while_others_get_replies_is_a_queue_and_no_failure(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if call.text == "question 0" and call.tries < 5:
            return failed(429, "later", wait=0.08)
        return said(f"answer to {call.text}", wait=0.03)

    with Server(script) as server:
        found = run(server, tmp_path / "replies.jsonl", asked(32), tries=3, concurrency=2)
    assert texts(found) == [f"answer to question {i}" for i in range(32)]
    assert found[0].attempts == 6


@pytest.mark.parametrize(
    ("answer", "said_so"),
    [
        (failed(401, f"Incorrect API key provided: {KEY}"), "status 401: Incorrect .* check the key that TEST_KEY"),
        (failed(404, "no such model"), "status 404: no such model .*check `endpoint.address` and `endpoint.model`"),
        (failed(429, "You exceeded your quota (insufficient_quota)"), "status 429: .*check the account's limits"),
        (Answer(301, {}, {"Location": "https://elsewhere/v1"}), "status 301: it redirects to https://elsewhere/v1"),
        (failed(429, "tomorrow", headers={"Retry-After": "90000"}), "asks to wait 90,000 s"),
    ],
)
def test_what_cannot_heal_is_not_tried_again(answer: Answer, said_so: str, tmp_path: Path) -> None:
    with Server(lambda call: answer) as server:
        with pytest.raises(EndpointError, match=said_so) as error:
            run(server, tmp_path / "replies.jsonl", asked(1))
    assert len(server.calls) == 1
    assert KEY not in str(error.value)


def test_a_request_that_the_server_refuses_does_not_stop_the_others(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return failed(400, "too long") if call.text == "question 1" else echo(call)

    with Server(script) as server:
        found = run(server, tmp_path / "replies.jsonl", asked(3))
    assert texts(found) == ["answer to question 0", "refused 400", "answer to question 2"]
    assert [call.text for call in server.calls].count("question 1") == 1


def test_calls_under_way_when_a_run_stops_are_written_down(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return failed(401, "no") if call.text == "question 1" else said("paid for", wait=0.3)

    path = tmp_path / "replies.jsonl"
    with Server(script) as server, pytest.raises(EndpointError):
        run(server, path, asked(2), concurrency=2)
    with Recorded(path) as recorded:
        assert recorded.get(asked(1)[0].key) is not None


def test_a_run_that_nobody_wants_to_go_on_with_ends_at_once(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return echo(call) if call.text == "question 0" else said("late", wait=15.0)

    started = time.monotonic()
    with Server(script) as server:
        with Endpoint(settings(server), Recorded(tmp_path / "replies.jsonl"), wait=NO_WAIT) as endpoint:
            outcomes = endpoint.complete_many(asked(3))
            next(outcomes)
            outcomes.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 5


def test_a_budget_in_calls_counts_tries_and_stops_before_it_is_exceeded(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return failed(500, "oops") if call.text == "question 0" and not call.tries else echo(call)

    path = tmp_path / "replies.jsonl"
    with Server(script) as server:
        with pytest.raises(BudgetSpent, match=r"endpoint\.budget\.calls: all 3 calls are spent"):
            run(server, path, asked(5), concurrency=1, budget={"calls": 3})
        assert len(server.calls) == 3
        with pytest.raises(BudgetSpent, match=r"endpoint\.budget\.calls"):  # counted over all runs
            run(server, path, asked(5), concurrency=1, budget={"calls": 4})
        assert len(server.calls) == 4
        assert len(run(server, path, asked(5), budget={"calls": 6})) == 5
        assert len(server.calls) == 6


def test_a_budget_in_tokens_is_never_exceeded_and_is_used_up_to_one_call(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    request = asked(1, max_tokens=100)[0]
    assert request.most_tokens == len("question 0") + 16 + 100
    with Server(lambda call: said("x", prompt_tokens=30, completion_tokens=20)) as server:
        with pytest.raises(BudgetSpent, match=r"endpoint\.budget\.tokens: 350 of 476 .* may cost up to 127"):
            run(server, path, asked(30, max_tokens=100)[10:], concurrency=4, budget={"tokens": 500 - 24})
        assert len(server.calls) == 7  # 7 x 50 are spent; an eighth might cost 127 of the 126 that are left


def test_a_server_that_counts_more_than_the_bound_is_believed_from_then_on(tmp_path: Path) -> None:
    with Server(lambda call: said("x", prompt_tokens=500, completion_tokens=20)) as server:
        with pytest.raises(BudgetSpent, match="may cost up to 520"):
            run(server, tmp_path / "r.jsonl", asked(9, max_tokens=20), concurrency=1, budget={"tokens": 1500})
    assert len(server.calls) == 2


def test_a_budget_in_tokens_that_cannot_be_kept_is_said_and_the_reply_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
    with Server(lambda call: Answer(body=body)) as server:
        with pytest.raises(ChatloomError, match=r"does not tell .*endpoint\.budget\.calls"):
            run(server, path, asked(1), budget={"tokens": 10_000})
        assert texts(run(server, path, asked(1))) == ["x"]
        assert len(server.calls) == 1


def test_no_call_is_made_twice_and_other_samples_are_other_calls(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    requests = [*asked(3), *asked(3), *asked(3, sample=1)]
    with Server(echo) as server:
        first = run(server, path, requests, concurrency=1)
        assert len(server.calls) == 6
        assert run(server, path, requests) == first
        assert len(server.calls) == 6
        run(server, path, asked(1, temperature=0.3))
        assert len(server.calls) == 7


CHILD = """
import sys
from pathlib import Path
from chatloom.endpoints import Endpoint, EndpointSettings, Recorded, Request
settings = EndpointSettings(address=sys.argv[1], model="m", key="TEST_KEY", concurrency=4)
with Endpoint(settings, Recorded(Path(sys.argv[2]))) as endpoint:
    for reply in endpoint.complete_many(Request("m", (("user", f"question {i}"),)) for i in range(60)):
        pass
"""


def test_killed_in_the_middle_and_run_again_no_reply_is_asked_for_twice(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    block = threading.Event()
    waiting: list[Call] = []

    def script(call: Call) -> Answer:
        if call.number >= 25 and not block.is_set():
            waiting.append(call)
            block.wait(20)
            return Answer(500, {}, send=0)
        return echo(call)

    with Server(script) as server:
        child = subprocess.Popen([sys.executable, "-c", CHILD, server.address, str(path)])
        try:
            until(lambda: len(waiting) == 4)  # each thread asks for the next reply only when the last one is on disk
        finally:
            child.send_signal(signal.SIGKILL)
        assert child.wait(10) == -signal.SIGKILL
        block.set()
        with path.open("ab") as file:  # what a kill inside a write leaves behind
            file.write(b'{"key": "00ff", "text": "cut o')
        before = [call.text for call in server.answered if call not in waiting]
        assert len(before) == 25
        asked_before = len(server.calls)
        found = run(server, path, asked(60), concurrency=4)
        after = [call.text for call in server.calls[asked_before:]]
    assert texts(found) == [f"answer to question {i}" for i in range(60)]
    assert not set(before) & set(after)
    assert len(after) == len(set(after)) == 35
    with Recorded(path) as recorded:
        assert (recorded.torn, len(recorded)) == (0, 60)


def test_the_key_is_in_no_file_no_message_and_no_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def script(call: Call) -> Answer:
        if call.text == "question 2":
            return failed(400, f"bad request with {call.headers['Authorization']}")
        return said(f"you sent {call.headers['Authorization']}")

    with Server(script) as server:
        with Endpoint(settings(server), Recorded(tmp_path / "replies.jsonl"), wait=NO_WAIT) as endpoint:
            found = list(endpoint.complete_many(asked(3)))
            shown = repr(endpoint) + repr(vars(endpoint)) + repr(endpoint.settings) + repr(found)
        assert server.calls[0].headers["Authorization"] == f"Bearer {KEY}"
    assert texts(found) == ["you sent Bearer <key>", "you sent Bearer <key>", "refused 400"]
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    out, err = capfd.readouterr()
    assert KEY.encode() not in written
    assert KEY not in shown + out + err


def test_through_a_proxy_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(echo) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "")
        [reply] = run(proxy, tmp_path / "replies.jsonl", asked(1), address="http://models.internal/v1")
    assert isinstance(reply, Reply)
    assert proxy.calls[0].path == "http://models.internal/v1/chat/completions"
    assert proxy.calls[0].headers["Host"] == "models.internal"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    file = tmp_path / "server.pem"
    about = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", file, "-out", tmp_path / "c", *about]
    subprocess.run(made, check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + (tmp_path / "c").read_bytes())
    return file


def test_a_safe_connection_ends_at_its_deadline_and_knows_whom_it_trusts(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(call: Call) -> Answer:
        return echo(call) if call.tries else said("a long text" * 20, drip=0.1)

    with Server(script, certificate) as server:
        with pytest.raises(EndpointError, match=r"certificate verify failed.* name the file of its authority"):
            run(server, tmp_path / "replies.jsonl", asked(1))
        assert server.calls == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        started = time.monotonic()
        [reply] = run(server, tmp_path / "replies.jsonl", asked(1), seconds=0.5)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.attempts) == ("answer to question 0", 2)
    assert time.monotonic() - started < 5


def test_where_nobody_listens_it_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Server(echo) as server, pytest.raises(EndpointError, match=r"Connection refused; tried 2 times"):
        run(server, tmp_path / "replies.jsonl", asked(1), address=f"http://127.0.0.1:{port}/v1", tries=2)


def test_an_interface_without_its_settings_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ChatloomError, match=r"endpoint\.model: not given"):
        Endpoint(EndpointSettings(address="http://localhost/v1"), Recorded(tmp_path / "r"))
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ChatloomError, match="the environment has no variable TEST_KEY"):
        Endpoint(EndpointSettings(address="http://localhost/v1", model="m", key="TEST_KEY"), Recorded(tmp_path / "r"))


def test_a_key_given_instead_of_its_name_is_refused_and_not_shown() -> None:
    for value in (KEY, "abcdef0123456789"):
        with pytest.raises(ChatloomError, match="expected the NAME of an environment variable") as error:
            EndpointSettings.parse({"key": value})
        assert value not in str(error.value)
    for address in ("https://me:pass123@host/v1", "https://host/v1?key=pass123", "host/v1"):
        with pytest.raises(ChatloomError, match=r"endpoint\.address"):
            EndpointSettings.parse({"address": address})


@pytest.mark.parametrize(
    ("address", "near"),
    [("http://localhost:8000/v1", True), ("http://10.1.2.3/v1", True), ("http://api.example.com/v1", False)],
)
def test_a_key_does_not_travel_unencrypted_to_a_host_outside(address: str, near: bool, tmp_path: Path) -> None:
    given = EndpointSettings(address=address, model="m", key="TEST_KEY")
    if near:
        Endpoint(given, Recorded(tmp_path / "r"))
        return
    with pytest.raises(ChatloomError, match="unencrypted"):
        Endpoint(given, Recorded(tmp_path / "r"))


def test_waits_double_up_to_a_limit_and_are_jittered() -> None:
    wait = jittered(10.0)
    for attempt, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (60, 10)):
        waits = [wait(attempt) for _ in range(200)]
        assert longest / 2 <= min(waits) < 0.6 * longest
        assert 0.9 * longest < max(waits) <= longest


def headers() -> Iterator[tuple[dict[str, str], float | None]]:
    yield {"Retry-After": "12"}, 12.0
    yield {"Retry-After": "Fri, 27 Nov 2026 10:00:30 GMT"}, 30.0
    yield {"Retry-After": "Fri, 27 Nov 2026 09:00:00 GMT"}, 0.0
    yield {"retry-after-ms": "1500", "Retry-After": "2"}, 1.5
    yield {"Retry-After": "soon"}, None
    yield {}, None


@pytest.mark.parametrize(("given", "seconds"), headers())
def test_retry_after_is_a_number_or_a_date(given: dict[str, str], seconds: float | None) -> None:
    assert asked_to_wait(given, now=1795773600.0) == seconds


def test_a_reply_is_read_from_what_servers_send() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    reply = reply_of("0f", {"choices": [{"message": {"content": parts}}]}, 1)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.prompt_tokens, reply.finish) == ("ab", None, "")
    nothing = reply_of("0f", {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}, 1)
    assert isinstance(nothing, Reply)
    assert (nothing.text, nothing.finish) == ("", "content_filter")
    half = reply_of("0f", {"choices": [{"text": "a\ud83d"}]}, 1)
    assert isinstance(half, Reply)
    assert half.text == "a\ufffd"
    for bad in ({}, {"choices": "x"}, {"choices": [{"message": {"content": 3}}]}, {"choices": [None]}, []):
        assert isinstance(reply_of("0f", bad, 1), Failure)


def test_this_process_holds_no_key_after_the_environment_forgets_it(tmp_path: Path) -> None:
    with Server(echo) as server, Endpoint(settings(server), Recorded(tmp_path / "replies.jsonl")) as endpoint:
        del os.environ["TEST_KEY"]
        with pytest.raises(ChatloomError, match="TEST_KEY"):
            endpoint.complete(asked(1)[0])
        os.environ["TEST_KEY"] = KEY
        assert endpoint.complete(asked(1)[0])
