"""Promises of stage `dialogues`: one split by prompt over all files; what is left out is counted and can be found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chatloom import recipe
from chatloom.artifact import Artifact
from chatloom.dialogue.division import kind_of, language_of
from chatloom.dialogue.splits import prompt_key, root_key
from chatloom.dialogue.storage import read_conversations, read_preferences, read_prompts
from chatloom.errors import ChatloomError
from chatloom.recipe import PlanRefused
from chatloom.recipe.reading import from_values
from chatloom.settings import SettingsError

N = 120


def asked(number: int) -> str:
    return f"What is {number} plus one?"


def write(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def instructions(path: Path, numbers: Sequence[int] = range(N)) -> Path:
    return write(path, [{"instruction": asked(n), "input": "", "output": f"It is {n + 1}."} for n in numbers])


def pairs(path: Path, numbers: Sequence[int] = range(N)) -> Path:
    return write(
        path,
        [{"prompt": asked(n), "chosen": f"It is {n + 1}, gladly.", "rejected": f"{n + 1}, duh."} for n in numbers],
    )


@pytest.fixture
def sft(tmp_path: Path) -> Path:
    return instructions(tmp_path / "sft.jsonl")


@pytest.fixture
def preference(tmp_path: Path) -> Path:
    # The same prompts, in other letters: the split must not see a difference.
    return write(
        tmp_path / "pairs.jsonl",
        [
            {"instruction": f"  what is {n}  PLUS one?", "chosen": f"Gladly: {n + 1}.", "rejected": f"Duh. {n + 1}."}
            for n in reversed(range(N))
        ],
    )


def make(
    out: Path, conversations: Sequence[Path] = (), preferences: Sequence[Path] = (), seed: int = 0, **settings: Any
) -> Artifact:
    given = {"conversations": list(conversations), "preferences": list(preferences)}
    inputs = {key: value for key, value in given.items() if value}
    return recipe.run_stage("dialogues", settings, inputs, out / "dialogues", seed=seed, quiet=True)


def asked_in(made: Artifact) -> dict[str, set[str]]:
    """First questions of every file of an artifact."""
    found = {name: {root_key(c.messages) for c in read_conversations(made.file(f"{name}.parquet"))} for name in SFT}
    found |= {name: {root_key(p.prompt) for p in read_preferences(made.file(f"{name}.parquet"))} for name in PAIRS}
    return found | {name: {root_key(p.messages) for p in read_prompts(made.file(f"{name}.parquet"))} for name in ASKED}


SFT, PAIRS, ASKED = ("sft", "sft_heldout"), ("pairs", "pairs_heldout"), ("prompts", "test")


def test_files_that_share_prompts_are_split_alike(tmp_path: Path, sft: Path, preference: Path) -> None:
    made = make(tmp_path, [sft], [preference])
    sets = asked_in(made)
    assert sets["sft"] == sets["pairs"]
    assert sets["sft_heldout"] == sets["pairs_heldout"] == sets["prompts"] | sets["test"]
    assert made.metrics["prompts_in_sft_and_pairs"] == len(sets["sft"])
    assert len(sets["sft"] | sets["prompts"] | sets["test"]) == N


def test_no_prompt_is_in_two_parts(tmp_path: Path, sft: Path, preference: Path) -> None:
    sets = asked_in(make(tmp_path, [sft], [preference]))
    training = sets["sft"] | sets["pairs"]
    assert training
    assert sets["prompts"]
    assert sets["test"]
    assert not training & sets["prompts"]
    assert not training & sets["test"]
    assert not training & (sets["sft_heldout"] | sets["pairs_heldout"])
    assert not sets["prompts"] & sets["test"]


def test_shares_are_of_the_prompts(tmp_path: Path, sft: Path) -> None:
    shares = {"train": 0.5, "heldout": 0.2, "alignment": 0.2, "test": 0.1}
    made = make(tmp_path, [sft], shares=shares)
    assert sum(made.metrics["prompts"].values()) == N
    for part, share in shares.items():
        assert made.metrics["prompts"][part] == pytest.approx(share * N, abs=4 * (share * (1 - share) * N) ** 0.5)


def test_the_part_of_a_prompt_depends_on_seed_and_prompt_alone(tmp_path: Path, sft: Path) -> None:
    first = asked_in(make(tmp_path / "1", [sft]))["sft"]
    turned = instructions(tmp_path / "turned.jsonl", list(reversed(range(N)))[::2])
    half = asked_in(make(tmp_path / "2", [turned]))["sft"]
    assert half
    assert half < first
    assert asked_in(make(tmp_path / "3", [sft], seed=1))["sft"] != first


def test_the_same_files_give_the_same_bytes_wherever_they_lie(tmp_path: Path, sft: Path, preference: Path) -> None:
    other = tmp_path / "elsewhere"
    moved = [write(other / path.name, []) for path in (sft, preference)]
    for old, new in zip((sft, preference), moved, strict=True):
        new.write_bytes(old.read_bytes())
    made = [make(tmp_path / "1", [sft], [preference]), make(tmp_path / "2", [moved[0]], [moved[1]])]
    assert made[0].fingerprint == made[1].fingerprint
    for name in (*SFT, *PAIRS, *ASKED):
        assert made[0].file(f"{name}.parquet").read_bytes() == made[1].file(f"{name}.parquet").read_bytes()


def test_a_cap_takes_the_same_prompts_of_every_file_and_of_every_part(
    tmp_path: Path, sft: Path, preference: Path
) -> None:
    made = make(tmp_path, [sft], [preference], max_records=60)
    sets = asked_in(made)
    assert sets["sft"] == sets["pairs"]
    assert sum(made.metrics["prompts"].values()) == 60
    assert sets["prompts"]
    assert sets["test"]
    assert made.metrics["left_out"] == {"beyond max_records": 2 * (N - 60)}


def test_a_conversation_that_comes_to_a_held_out_question_is_left_out(tmp_path: Path, sft: Path) -> None:
    test = sorted(root_key(p.messages) for p in read_prompts(make(tmp_path / "1", [sft]).file("test.parquet")))
    turns = [
        {
            "messages": [
                {"role": "user", "content": f"Hello, it is day {n}."},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": test[0].upper()},
                {"role": "assistant", "content": "Seven."},
            ]
        }
        for n in range(40)
    ]
    made = make(tmp_path / "2", [sft, write(tmp_path / "turns.jsonl", turns)])
    learnt = read_conversations(made.file("sft.parquet"))
    assert made.metrics["left_out"]["a later turn asks what is held out"] > 20
    assert not any(test[0] in message.content.casefold() for item in learnt for message in item.messages)


def test_copies_are_used_once(tmp_path: Path, sft: Path, preference: Path) -> None:
    once = make(tmp_path / "1", [sft], [preference])
    twice = [write(tmp_path / "again" / sft.name, []), preference]
    twice[0].write_bytes(sft.read_bytes())
    made = make(tmp_path / "2", [sft, twice[0]], [preference, preference])
    assert asked_in(made) == asked_in(once)
    assert made.metrics["sft_conversations"] == once.metrics["sft_conversations"]
    assert made.metrics["left_out"] == {"a copy of an earlier record": 2 * N}
    ids = [item.id for item in read_conversations(made.file("sft.parquet"))]
    assert len(ids) == len(set(ids))


def test_what_is_not_used_is_found_in_quarantine_with_its_place(tmp_path: Path) -> None:
    path = instructions(tmp_path / "sft.jsonl", range(60))
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"instruction": "broken\n')
        stream.write(json.dumps({"instruction": "long?", "output": "字" * 40}, ensure_ascii=False) + "\n")
        stream.write(json.dumps({"instruction": "long " * 30, "output": "yes"}) + "\n")
    made = make(tmp_path, [path], max_prompt_bytes=100, max_answer_bytes=100, min_answer_bytes=4)
    lines = made.file("quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    found = {(item["file"], item["line"]): item["reason"] for item in map(json.loads, lines)}
    assert found.keys() == {("sft.jsonl", 61), ("sft.jsonl", 62), ("sft.jsonl", 63)}
    assert "not JSON" in found["sft.jsonl", 61]
    assert found["sft.jsonl", 62] == "answer longer than max_answer_bytes: 120 bytes"
    assert "max_prompt_bytes" in found["sft.jsonl", 63]
    assert made.metrics["quarantined"] == 1
    assert sum(made.metrics["left_out"].values()) == 2
    assert str(tmp_path) not in made.file("quarantine.jsonl").read_text(encoding="utf-8")


def test_files_of_one_name_keep_apart(tmp_path: Path) -> None:
    files = [
        instructions(tmp_path / "a" / "x.jsonl", range(50)),
        instructions(tmp_path / "b" / "x.jsonl", range(50, N)),
    ]
    made = make(tmp_path, files)
    ids = [item.id for name in SFT for item in read_conversations(made.file(f"{name}.parquet"))]
    assert len(set(ids)) == N
    assert {item.partition(":")[0] for item in ids} == {"x.jsonl", "x.jsonl#2"}


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    instructions(tmp_path / "data" / "b.jsonl", range(50))
    instructions(tmp_path / "data" / "deep" / "a.jsonl", range(50, N))
    (tmp_path / "data" / "README").write_text("not data", encoding="utf-8")
    made = make(tmp_path, [tmp_path / "data"])
    assert sum(made.metrics["prompts"].values()) == N


def test_held_out_rankings_are_written_as_pairs(tmp_path: Path) -> None:
    ranked = [{"instruction": asked(n), "output": [f"{n + 1}", f"{n}", f"{n - 1}"]} for n in range(N)]
    made = make(tmp_path, preferences=[write(tmp_path / "ranked.jsonl", ranked)])
    held = read_preferences(made.file("pairs_heldout.parquet"))
    assert {len(item.answers) for item in read_preferences(made.file("pairs.parquet"))} == {3}
    assert {len(item.answers) for item in held} == {2}
    assert len(held) == 3 * (N - made.metrics["preferences"])
    assert len({item.id for item in held}) == len(held)
    for item in held:
        assert int(item.chosen) > int(item.rejected)


def test_alignment_prompts_never_carry_an_answer(tmp_path: Path, sft: Path, preference: Path) -> None:
    plain = make(tmp_path / "1", [sft], [preference])
    told = make(tmp_path / "2", [sft], [preference], true_answers=True)
    for made in (plain, told):
        assert all(prompt.answer is None for prompt in read_prompts(made.file("prompts.parquet")))
    assert all(prompt.answer is None for prompt in read_prompts(plain.file("test.parquet")))
    tests = read_prompts(told.file("test.parquet"))
    assert tests
    for prompt in tests:
        number = int(root_key(prompt.messages).split(" ")[2])
        assert prompt.answer == f"It is {number + 1}."


@pytest.mark.parametrize(("source", "kinds"), [("auto", {"b"}), ("conversations", {"a"}), ("both", {"a", "b"})])
def test_prompts_come_from_the_files_asked_for(tmp_path: Path, source: str, kinds: set[str]) -> None:
    files = instructions(tmp_path / "a.jsonl", range(60)), pairs(tmp_path / "b.jsonl", range(60, N))
    made = make(tmp_path, [files[0]], [files[1]], prompts_from=source)
    for name in ASKED:
        assert {prompt.kind for prompt in read_prompts(made.file(f"{name}.parquet"))} == kinds


def test_conversations_alone_give_their_own_prompts(tmp_path: Path, sft: Path) -> None:
    sets = asked_in(make(tmp_path, [sft]))
    assert sets["prompts"] | sets["test"] == sets["sft_heldout"]
    assert not sets["pairs"]


def test_a_prompt_is_asked_once(tmp_path: Path) -> None:
    both = [{"prompt": asked(n), "chosen": f"{n + 1}{sign}", "rejected": "no"} for n in range(N) for sign in ".!"]
    made = make(tmp_path, preferences=[write(tmp_path / "b.jsonl", both)])
    keys = [prompt_key(prompt.messages) for name in ASKED for prompt in read_prompts(made.file(f"{name}.parquet"))]
    assert len(keys) == len(set(keys)) == made.metrics["prompts"]["alignment"] + made.metrics["prompts"]["test"]


def test_columns_of_other_names_are_renamed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"frage": asked(n), "antwort": f"{n + 1}"} for n in range(N)])
    made = make(tmp_path, [path], columns={"prompt": "frage", "completion": "antwort"})
    assert made.metrics["sft_conversations"] > N / 2


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of Canada?", "en"),
        ("加拿大的首都是哪里？", "zh"),
        ("`os.path` 是做什么的？", "zh"),
        ("Translate 你好 into English, please.", "en"),
        ("カナダの首都はどこですか", "other"),
        ("Какой город столица?", "other"),
        ("캐나다의 수도는?", "other"),
        ("1 + 1 = ?", "other"),
    ],
)
def test_prompts_are_labelled_by_script(text: str, language: str) -> None:
    assert language_of(text) == language


def test_kinds_are_names_of_files() -> None:
    assert kind_of("en_pairs.jsonl.gz#2:17") == kind_of("en_pairs.parquet:1") == "en_pairs"


# --- what cannot work ---------------------------------------------------------------------------------------------


def test_no_data_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="there is no data; give `conversations"):
        make(tmp_path)


def test_a_missing_file_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match=r"nothing\.jsonl: no such file"):
        make(tmp_path, [tmp_path / "nothing.jsonl"])
    assert not (tmp_path / "dialogues").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"x": 1}\n', "its columns are x; that is no known format of conversations"),
        ("a.jsonl", "", "is empty"),
        ("a.docx", "x", "expected one of .jsonl"),
        ("a.jsonl", '{"prompt": "p", "chosen": "a", "rejected": "b"}\n', "looks like prompt/chosen/rejected"),
    ],
)
def test_files_that_cannot_be_read_are_refused_before_anything_runs(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(PlanRefused, match=message):
        make(tmp_path, [tmp_path / name])
    assert not list(tmp_path.glob("dialogues*"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(PlanRefused, match=r"holds no file that ends in \.jsonl"):
        make(tmp_path, [tmp_path / "data"])


def test_too_many_bad_records_are_refused(tmp_path: Path) -> None:
    path = instructions(tmp_path / "a.jsonl", range(20))
    path.write_text(path.read_text(encoding="utf-8") + "{\n" * 5, encoding="utf-8")
    with pytest.raises(PlanRefused, match=r"20.0% of the file and at most 5.0% may be bad"):
        make(tmp_path, [path])
    assert make(tmp_path, [path], max_bad_share=0.3).metrics["quarantined"] == 5


def test_limits_that_leave_nothing_say_what_they_took(tmp_path: Path, sft: Path) -> None:
    with pytest.raises(ChatloomError, match=r"none is left to train on \(120 x answer longer than max_answer_bytes\)"):
        make(tmp_path, [sft], max_answer_bytes=3)


@pytest.mark.parametrize("shares", [{"train": 0.9}, {"train": 0.5, "test": 0.1}, {"train": 0.0, "test": 0.85}])
def test_shares_that_are_no_division_are_refused(tmp_path: Path, sft: Path, shares: dict[str, float]) -> None:
    with pytest.raises((SettingsError, ChatloomError), match="shares"):
        make(tmp_path, [sft], shares=shares)


def test_the_plan_counts_records(tmp_path: Path, sft: Path, preference: Path) -> None:
    values = {
        "stages": {
            "d": {"stage": "dialogues", "conversations": {"path": str(sft)}, "preferences": {"path": str(preference)}}
        }
    }
    report = recipe.plan(from_values(values), tmp_path / "runs", measure=False)
    lines = {line.name: line for line in report.stages[0].figures.lines}
    assert (lines["read"].value, lines["read"].exact) == (2 * N, True)
    assert lines["records"].value == lines["pairs"].value == pytest.approx(0.7 * N)


# --- real files ---------------------------------------------------------------------------------------------------


def test_the_two_politeness_files_share_every_prompt_and_are_split_alike(tmp_path: Path, shared_data: Path) -> None:
    conversations = [shared_data / "sft" / f"{name}.jsonl.gz" for name in ("en_rasbt_instructions", "zh_oasst")]
    preference = shared_data / "preference" / "en_rasbt_politeness_pairs.jsonl.gz"
    made = make(tmp_path, conversations, [preference], max_prompt_bytes=300, max_answer_bytes=500)
    sets = asked_in(made)
    training = sets["sft"] | sets["pairs"]
    assert not training & (sets["prompts"] | sets["test"] | sets["pairs_heldout"])
    assert made.metrics["prompts_in_sft_and_pairs"] > 600
    assert made.metrics["preferences"] > 600
    languages = {language_of(c.messages[0].content) for c in read_conversations(made.file("sft.parquet"))}
    assert {"en", "zh"} <= languages
    assert {prompt.kind for prompt in read_prompts(made.file("test.parquet"))} == {"en_rasbt_politeness_pairs"}
