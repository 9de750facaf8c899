"""The stage `synthetic`: against a server that fails as servers do, with a model made here, killed anywhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from endpoint_server import Answer, Call, Server, failed, said
from synthetic_help import TOPICS, answer, content, documents_of, seeds_artifact, stage_settings
from toys import World

from chatloom import recipe
from chatloom.artifact import Artifact, partial_of
from chatloom.corpus.record import read_dropped
from chatloom.errors import ChatloomError
from chatloom.recipe import PlanRefused

CHILD = Path(__file__).parents[1] / "synthetic_child.py"
Script = Callable[[Call], Answer]


def good(call: Call) -> Answer:
    """A finished text of the prompt's language."""
    return said(answer(call.text, call.body.get("seed")), prompt_tokens=100, completion_tokens=200)


def varied(call: Call) -> Answer:
    """Most replies are good; by the seed of the call some are what filters are there for."""
    kind = int(call.body["seed"]) % 8
    chinese = "请" in call.text
    if kind == 0:
        return said("抱歉，我不能写。" if chinese else "I'm sorry, but I can't help with that.")
    if kind == 1:
        return said(answer(call.text, 1), finish="length")
    if kind == 2:
        return said(answer("yeast" if chinese else "水稻", 7))
    if kind == 3:
        return said(answer("土壤" if chinese else "oven", 1))  # the same text again and again
    return good(call)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return seeds_artifact(tmp_path_factory.mktemp("seeds") / "seeds")


def make(seeds: Artifact, out: Path, server: Server | None = None, *, inputs: Any = None, **changes: Any) -> Artifact:
    settings = stage_settings(server.address if server else "", **changes)
    return recipe.run_stage("synthetic", settings, {"documents": [seeds.path], **(inputs or {})}, out, quiet=True)


def dropped_of(made: Artifact) -> dict[str, tuple[str, str]]:
    files = sorted((made.path / "dropped").glob("*.parquet"))
    return {row.id: (row.reason, row.detail) for file in files for row in read_dropped(file)}


def test_every_reply_ends_as_a_document_or_is_dropped_with_its_reason(seeds: Artifact, tmp_path: Path) -> None:
    with Server(varied) as server:
        made = make(seeds, tmp_path / "made", server, ask={"prompts": 60, "samples": 2})
    documents, dropped = documents_of(made), dropped_of(made)
    assert len(documents) + len(dropped) == len(server.calls) == 120
    assert made.metrics["documents"] == len(documents)
    assert made.metrics["dropped"] == dict(sorted(Counter(reason for reason, _ in dropped.values()).items()))
    assert {"refusal", "unfinished", "other_language", "exact_copy"} <= set(made.metrics["dropped"])
    assert len({document.id for document in documents} | set(dropped)) == 120
    replies = {answer(call.text, call.body["seed"]) for call in server.calls} | {answer("土壤", 1), answer("oven", 1)}
    prompts = {row["number"]: row for row in pq.read_table(made.path / "prompts.parquet").to_pylist()}
    for document in documents:
        about = document.metadata
        assert document.text in replies
        assert document.labels["split"] == "train"
        assert document.labels["language"] == about["language"]
        assert document.source == f"synthetic/{about['template']}"
        assert about["generator"] == "writer"
        assert prompts[about["prompt"]]["cluster"] == about["cluster"]
        assert prompts[about["prompt"]]["hash"] == about["prompt_hash"]
    report = json.loads((made.path / "report.json").read_text(encoding="utf-8"))
    for group in ("all", "template", "language", "cluster"):
        for outcomes in report["counts"][group].values():
            gone = sum(n for name, n in outcomes.items() if name.startswith("dropped:"))
            assert outcomes["replies"] == gone + outcomes.get("kept", 0)
    page = (made.path / "synthetic.html").read_text(encoding="utf-8")
    assert all(reason in page for reason in made.metrics["dropped"])
    assert any(word in page for word in TOPICS["baking"].split())


def test_failures_that_heal_change_nothing(seeds: Artifact, tmp_path: Path) -> None:
    def failing(call: Call) -> Answer:
        ways = [
            failed(429, "slow down", headers={"Retry-After": "0"}),
            failed(503, "busy"),
            Answer(reset=True),
            Answer(body=b"<html>no JSON</html>"),
            said("too late", wait=3.0),
        ]
        return ways[call.number % 5] if call.tries == 0 and call.number % 2 else varied(call)

    with Server(varied) as server:
        expected = content(make(seeds, tmp_path / "a" / "made", server).path, ("report.json", "synthetic.html"))
    with Server(failing) as server:
        made = make(seeds, tmp_path / "b" / "made", server, endpoint={"seconds": 1.0, "concurrency": 2, "tries": 20})
    assert content(made.path, ("report.json", "synthetic.html")) == expected
    assert made.metrics["calls"] >= len(server.calls) > 50
    assert (made.path / "quarantine.jsonl").read_bytes() == b""


def test_the_same_comes_out_whatever_the_order_of_replies_and_the_number_of_workers(
    seeds: Artifact, tmp_path: Path
) -> None:
    def slow(call: Call) -> Answer:
        answered = varied(call)
        return Answer(answered.status, answered.body, wait=0.05 if call.number % 3 else 0.0)

    found = []
    for name, script, concurrency, workers in (("a", varied, 1, 1), ("b", slow, 8, 2)):
        with Server(script) as server:
            settings = {"endpoint": {"concurrency": concurrency}, "engine": {"workers": workers}}
            made = make(seeds, tmp_path / name / "made", server, **settings)
        found.append(content(made.path, ("synthetic.html",)))
    assert found[0] == found[1]  # the page shows settings, and these differ


def test_prompts_that_the_server_refuses_are_set_aside_and_too_many_stop_the_run(
    seeds: Artifact, tmp_path: Path
) -> None:
    def refusing(share: int) -> Script:
        return lambda call: failed(400, "not allowed here") if call.body["seed"] % 100 < share else good(call)

    with Server(refusing(12)) as server:
        made = make(seeds, tmp_path / "some", server, ask={"prompts": 80})
    lines = [json.loads(line) for line in (made.path / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == made.metrics["failed"] > 0
    assert made.metrics["replies"] + made.metrics["failed"] == 80
    assert all(line["reason"].endswith("status 400: not allowed here (test)") for line in lines)
    with Server(refusing(80)) as server:
        with pytest.raises(ChatloomError, match=r"11 of 80 prompts got no reply, more than the allowed share of 0.1"):
            make(seeds, tmp_path / "most", server, ask={"prompts": 80})
    assert not (tmp_path / "most").exists()


def test_a_key_that_is_wrong_stops_the_run_and_another_one_goes_on(
    seeds: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = "Bearer right-key-1234"

    def checking(call: Call) -> Answer:
        if call.headers.get("Authorization") != wanted or call.number == 20:
            return failed(401, "bad key")
        return good(call)

    with Server(checking) as server:
        monkeypatch.setenv("TEST_KEY", "right-key-1234")
        with pytest.raises(ChatloomError, match=r"status 401: bad key.*check the key that TEST_KEY holds"):
            make(seeds, tmp_path / "made", server, endpoint={"key": "TEST_KEY"})
        made = make(seeds, tmp_path / "made", server, endpoint={"key": "TEST_KEY"})
        assert Counter(call.text + str(call.body["seed"]) for call in server.answered).most_common(2)[1][1] == 1
    assert made.metrics["replies"] == 40
    for file in made.path.rglob("*"):
        assert not file.is_file() or b"right-key" not in file.read_bytes()


def test_a_budget_stops_the_run_and_it_goes_on_when_it_is_raised(seeds: Artifact, tmp_path: Path) -> None:
    with Server(good) as server:
        with pytest.raises(ChatloomError, match=r"budget.tokens: [\d,]+ of 6,000 tokens are spent"):
            make(seeds, tmp_path / "made", server, endpoint={"budget": {"tokens": 6000}})
        before = len(server.calls)
        assert 0 < before < 40
        made = make(seeds, tmp_path / "made", server, endpoint={"budget": {"tokens": 60000}})
        assert len(server.calls) == 40  # none twice
    assert made.metrics["tokens"] == 40 * 300


def values(seeds: Artifact, out: Path, server: Server) -> str:
    settings = stage_settings(server.address, ask={"prompts": 30})
    return json.dumps({"settings": settings, "inputs": {"documents": [str(seeds.path)]}, "out": str(out)})


def child(text: str, *moment: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHILD), text, *map(str, moment)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=120)


def test_killed_at_many_moments_and_run_again_it_ends_with_the_same_bytes(seeds: Artifact, tmp_path: Path) -> None:
    with Server(varied) as server:
        whole = child(values(seeds, tmp_path / "whole" / "made", server))
        assert whole.returncode == 0, whole.stderr
        n_events = int(whole.stdout)
        expected = content(tmp_path / "whole" / "made")
        asked = len(server.calls)
        out = tmp_path / "killed" / "made"
        moments = [n_events * place // 6 for place in range(1, 6)]
        for moment in moments:  # each run goes on where the last one was killed, and gets further
            ended = child(values(seeds, out, server), moment)
            assert ended.returncode == -signal.SIGKILL, ended.stderr
            if out.exists():
                break
        made = make(seeds, out, server, ask={"prompts": 30})
        assert content(made.path) == expected
        again = Counter(str(call.body) for call in server.calls[asked:])
    assert len(again) == 30
    assert max(again.values()) <= 2  # a call under way when its process is killed cannot be known of


def test_killed_while_it_waits_for_replies_it_asks_for_none_that_it_has(seeds: Artifact, tmp_path: Path) -> None:
    def stuck(call: Call) -> Answer:
        return good(call) if call.number < 17 else Answer(wait=20.0)

    out = tmp_path / "made"
    with Server(stuck) as server:
        process = subprocess.Popen([sys.executable, str(CHILD), values(seeds, out, server)])
        try:
            record = partial_of(out) / "replies.jsonl"
            for _ in range(600):
                if record.is_file() and record.read_bytes().count(b"\n") == 17:
                    break
                assert process.poll() is None
                server.closing.wait(0.1)
        finally:
            process.kill()
        assert process.wait(10) == -signal.SIGKILL
        had = {str(call.body) for call in server.answered}
    assert len(had) == 17
    with Server(good) as server:
        made = make(seeds, out, server, ask={"prompts": 30})
        assert len(server.calls) == 13
        assert not had & {str(call.body) for call in server.calls}
    assert made.metrics["replies"] == 30


def test_other_filters_and_more_prompts_take_over_what_is_there(seeds: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "made"
    with Server(varied) as server:
        first = make(seeds, out, server)
        n_first = len(documents_of(first))
        loose = make(seeds, out, server, filters={"refusals": False, "rules": {"preset": "none"}})
        assert len(server.calls) == 40
        assert len(documents_of(loose)) > n_first
        more = make(seeds, out, server, ask={"prompts": 50}, endpoint={"budget": {"calls": 50}})
        assert len(server.calls) == 50
    texts = {document.id: document.text for document in documents_of(more)}
    kept = {document.id: document.text for document in documents_of(first_again(out, first))}
    assert kept.items() <= texts.items()


def first_again(out: Path, first: Artifact) -> Artifact:
    """Where the first artifact is now."""
    return Artifact(out.with_name(f"{out.name}@{first.fingerprint[:8]}"), first.manifest)


def test_a_half_done_folder_that_is_renamed_gives_its_replies_to_the_next_one(seeds: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "made"
    with Server(good) as server:
        with pytest.raises(ChatloomError, match="none of 40 replies became a document: 40 word_count") as error:
            make(seeds, out, server, filters={"rules": {"limits": {"word_count": {"*": [9000, None]}}}})
        aside = tmp_path / "made@1"
        assert f"rename {partial_of(out)} to {aside}" in str(error.value)
        with pytest.raises(ChatloomError, match="half done with other settings"):
            make(seeds, out, server)
        partial_of(out).rename(aside)
        made = make(seeds, out, server)
        assert len(server.calls) == 40
    assert made.metrics["documents"] > 30


def test_a_reply_that_repeats_a_passage_is_a_copy(seeds: Artifact, tmp_path: Path) -> None:
    def passage(call: Call) -> Answer:
        _, shown, _ = call.text.split("\n\n", 2)
        return said(shown) if call.body["seed"] % 2 else good(call)

    with Server(passage) as server:
        filters = {"max_copied": 1.0, "rules": {"preset": "none"}}
        made = make(seeds, tmp_path / "made", server, ask={"templates": ["rewrite"]}, filters=filters)
    reasons = dropped_of(made)
    repeated = sum(call.body["seed"] % 2 for call in server.calls)
    assert made.metrics["dropped"] == {"exact_copy": repeated}
    assert all(detail.startswith("of passage/") for _, detail in reasons.values())


TINY = "templates:\n  short: {en: 'colour of {terms}?', zh: '{terms}的颜色？'}\n"
FOR_TINY: dict[str, Any] = {
    "ask": {"prompts": 20, "max_tokens": 8, "terms": 1},
    "filters": {
        "unfinished": True,
        "same_language": False,
        "rules": {"preset": "none"},
        "duplicates": {"exact": False},
    },
    "device": "cpu",
    "group": 8,
}


def test_a_model_made_here_writes_and_is_not_asked_again(
    seeds: Artifact, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chatloom.generation import completions

    templates = tmp_path / "mine.yaml"
    templates.write_text(TINY, encoding="utf-8")
    inputs = {"model": world["sft"].path, "templates": templates}
    made = make(seeds, tmp_path / "a" / "made", inputs=inputs, **FOR_TINY)
    found = documents_of(made)
    assert found
    assert {document.metadata["generator"] for document in found} == {f"sft@{world['sft'].fingerprint}"}
    assert {document.metadata["template"] for document in found} == {"short"}
    again = make(seeds, tmp_path / "b" / "made", inputs=inputs, **FOR_TINY)
    assert content(made.path) == content(again.path)
    monkeypatch.setattr(completions, "generate", None)  # nothing is generated where all is recorded
    less = {**FOR_TINY, "ask": {**FOR_TINY["ask"], "prompts": 8}}
    assert make(seeds, tmp_path / "b" / "made", inputs=inputs, **less).metrics["replies"] == 8


def test_a_base_model_writes_too(seeds: Artifact, world: World, tmp_path: Path) -> None:
    templates = tmp_path / "mine.yaml"
    templates.write_text(TINY, encoding="utf-8")
    inputs = {"model": world["pretrain"].path, "templates": templates}
    assert make(seeds, tmp_path / "made", inputs=inputs, **FOR_TINY).metrics["replies"] == 20


def planned(seeds: Artifact, tmp_path: Path, inputs: Any = None, **settings: Any) -> Any:
    given = {name: {"path": str(path)} for name, path in {"documents": seeds.path, **(inputs or {})}.items()}
    stage = {"stage": "synthetic", **given, **settings}
    graph = recipe.reading.from_values({"name": "x", "stages": {"written": stage}})
    return recipe.plan(graph, tmp_path / "out", measure=False)


ENDPOINT = {"address": "http://localhost:9/v1", "model": "m"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "an input `model` or `endpoint: {address, model}` says who answers: neither is given"),
        ({"endpoint": {"address": "http://localhost:9/v1"}}, "endpoint.model is not given"),
        ({"endpoint": {**ENDPOINT, "key": "NOT_THERE"}}, "the environment has no variable NOT_THERE"),
        ({"endpoint": {**ENDPOINT, "budget": {"calls": 99}}}, "100 calls are needed, endpoint.budget.calls allows 99"),
        ({"endpoint": ENDPOINT, "clusters": {"vectors": "file"}}, "the input `embeddings` go together"),
        ({"endpoint": ENDPOINT, "clusters": {"vectors": "label"}}, "`clusters.label` go together"),
        ({"endpoint": ENDPOINT, "ask": {"templates": ["storie"]}}, "there is no template `storie`"),
        ({"endpoint": ENDPOINT, "ask": {"languages": ["fr"]}}, "no template has a text in `fr`"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    settings: dict[str, Any], told: str, seeds: Artifact, tmp_path: Path
) -> None:
    with pytest.raises((PlanRefused, ChatloomError)) as error:
        planned(seeds, tmp_path, **settings).check()
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ask": {"prompt": 3}}, "written.ask.prompt: there is no such setting; did you mean `prompts`?"),
        ({"ask": {"prompts": 0}}, "written.ask.prompts: Input should be greater than or equal to 1, found 0"),
        ({"filters": {"max_copied": 2}}, "written.filters.max_copied: Input should be less than or equal to 1"),
        ({"filters": {"rules": {"limits": {"word_counts": {}}}}}, "did you mean `word_count`?"),
        ({"endpoint": {"key": "sk-abc"}}, "expected the NAME of an environment variable"),
        ({"clusters": {"vectors": "bert"}}, "Input should be 'tfidf', 'label' or 'file'"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    settings: dict[str, Any], told: str, seeds: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(ChatloomError) as error:
        planned(seeds, tmp_path, **settings)
    assert told in str(error.value)
    assert "sk-abc" not in str(error.value)


@pytest.mark.parametrize("name", ["templates", "embeddings"])
def test_two_files_where_one_is_taken_are_refused(name: str, seeds: Artifact, tmp_path: Path) -> None:
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for file in files:
        file.write_text(TINY, encoding="utf-8")
    with pytest.raises((PlanRefused, ChatloomError), match=rf"{name}: one file is taken, found .*a.yaml, .*b.yaml"):
        planned(seeds, tmp_path, endpoint=ENDPOINT, **{name: {"path": [str(file) for file in files]}}).check()


def test_a_plan_counts_calls_exactly_and_warns_of_tokens(seeds: Artifact, tmp_path: Path) -> None:
    ask = {"prompts": 70, "samples": 3}
    report = planned(seeds, tmp_path, endpoint={**ENDPOINT, "budget": {"tokens": 1000}}, ask=ask)
    lines = {line.name: line for line in report.stages[0].figures.lines}
    assert (lines["calls"].value, lines["calls"].exact) == (210, True)
    assert lines["time"].value > 0
    assert any("tokens are needed, endpoint.budget.tokens allows 1,000" in text for text in report.warnings)


def test_a_plan_says_what_does_not_fit_the_models_context(seeds: Artifact, world: World, tmp_path: Path) -> None:
    inputs = {"model": world["sft"].path}
    report = planned(seeds, tmp_path, inputs, ask={"max_tokens": 8})
    assert any("do not fit the model's 40" in text for text in report.warnings)
    assert {line.name for line in report.stages[0].figures.lines} >= {"calls", "time", "memory", "bytes"}
    with pytest.raises(PlanRefused, match=r"ask.max_tokens is 64, the model reads 40 tokens in all"):
        planned(seeds, tmp_path, inputs, ask={"max_tokens": 64}).check()
    both = {**inputs, "documents": seeds.path}
    with pytest.raises(PlanRefused, match="both are given; leave one out"):
        planned(seeds, tmp_path, both, endpoint=ENDPOINT, ask={"max_tokens": 8}).check()


def test_its_documents_go_through_the_corpus_chain_and_into_a_token_store(
    seeds: Artifact, world: World, tmp_path: Path
) -> None:
    with Server(good) as server:
        made = make(seeds, tmp_path / "written", server)

    def run(kind: str, name: str, inputs: Any, **settings: Any) -> Artifact:
        return recipe.run_stage(kind, settings, inputs, tmp_path / name, quiet=True)

    engine = {"engine": {"workers": 1}}
    labels = run("labels", "labels", {"documents": made}, labellers={"language": {}, "length": {}}, **engine)
    copies = run("duplicates", "copies", {"documents": made}, held_out_share=0.2, **engine)
    inputs = {"documents": made, "labels": [labels], "duplicates": copies}
    chosen = run("selection", "chosen", inputs, keep="length_characters > 100 and language == 'zh'", **engine)
    kept = documents_of(chosen)
    assert kept
    assert {document.labels["language"] for document in kept} == {"zh"}
    assert "held_out" in {document.labels["split"] for document in kept}  # the chain's split takes the place of its own
    tokens = run("tokens", "tokens", {"documents": [made, seeds], "vocabulary": world["tokenizer"]})
    assert tokens.metrics["train"]["documents"] == len(documents_of(made)) + 135
    assert tokens.metrics["held_out"]["documents"] == 15
    report = run("report", "report", {"stages": [made, chosen, tokens]})
    assert "Synthetic text" in (report.path / "report.html").read_text(encoding="utf-8")
