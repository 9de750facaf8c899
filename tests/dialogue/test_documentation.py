from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter

import pytest

from chatloom.dialogue.checks import is_refusal
from chatloom.dialogue.documentation import Sets, write_sets
from chatloom.dialogue.facts import read_facts
from chatloom.dialogue.negatives import KINDS, InventedNames
from chatloom.dialogue.phrasings import FILLERS_ZH, GROUPS, LANGUAGES, QUESTIONS, answer
from chatloom.dialogue.questions import DocumentationSettings
from chatloom.dialogue.record import DialogueError, Message
from chatloom.dialogue.splits import describe_overlaps, normalise, overlaps, question_keys


def is_chinese(text: str) -> bool:
    return re.search(r"[\u4e00-\u9fff]", text) is not None


def training_messages(sets: Sets) -> list[list[Message]]:
    return (
        [c.messages for c in sets.sft]
        + [pair.conversation(i) for pair in sets.preferences for i in (0, 1)]
        + [prompt.messages for prompt in sets.alignment]
    )


# --- phrasings --------------------------------------------------------------------------------------------------


def test_there_are_enough_phrasings_and_no_group_shares_one() -> None:
    for language in LANGUAGES:
        by_group = [
            [normalise(p) for p in QUESTIONS[group][language].opening + QUESTIONS[group][language].follow]
            for group in GROUPS
        ]
        flat = [phrasing for group in by_group for phrasing in group]
        assert len(flat) == len(set(flat)) >= 24
        assert all(phrasing.count("`{name}`") == 1 for phrasing in flat)
        assert all(is_chinese(phrasing) == (language == "zh") for phrasing in flat)


# --- facts ------------------------------------------------------------------------------------------------------

PAGE = """shapes (version 1.2)

Shapes. Not a fact.


Classes

builtins.object

    Box
    Old


class Box(builtins.object)
Box(width, height)

A box with sides.

hidden(x)
    This looks like a definition but stands in a description.

Methods defined here:

__init__(self)
    Initialize the box with its two sides.

area(self, /) -> float
    Return the area of the box in square units.  Never negative.

copy(self)
    Box.copy() -> Box

    Return a copy of the box, e.g. for changes.

turn(self)
    Turn the box by a right angle
    and a bit more.

Methods inherited from builtins.object:

weigh(self)
    Return the weight of the object in grams.

Data descriptors defined here:

width
    The width of the box in units.

Alias = class Other(builtins.object)
Methods defined here:

only(self)
    Return the only thing that there is.


Functions

draw = paint(box)
    Draw the box on the screen (slowly).

async fetch(url)
    Fetch a box from the network.

same(a)
    Return the same sentence as another.

twin(a)
    Return the same sentence as another.

tiny(a)
    Too short.


Data

SIDES = 4
"""


@dataclasses.dataclass
class Page:
    id: str
    text: str


@pytest.mark.parametrize("group", GROUPS[1:])
def test_no_filler_word_stands_in_a_phrasing_that_instruction_tuning_must_not_see(group: str) -> None:
    phrasings = QUESTIONS[group]["zh"]
    assert not [word for word in FILLERS_ZH for text in phrasings.opening + phrasings.follow if word in text]
    assert len(set(FILLERS_ZH)) == len(FILLERS_ZH) > 90


def test_facts_are_first_sentences_with_their_place() -> None:
    catalogue = read_facts([Page("p", PAGE)])
    assert {fact.name: (fact.kind, fact.sentence) for fact in catalogue.facts} == {
        "shapes.Alias.only": ("method", "Return the only thing that there is."),
        "shapes.Box.area": ("method", "Return the area of the box in square units."),
        "shapes.Box.copy": ("method", "Return a copy of the box, e.g. for changes."),
        "shapes.draw": ("function", "Draw the box on the screen (slowly)."),
        "shapes.fetch": ("function", "Fetch a box from the network."),
    }
    assert all(PAGE[fact.start : fact.end] == fact.sentence for fact in catalogue.facts)


def test_every_name_on_the_page_counts_as_known() -> None:
    names = read_facts([Page("p", PAGE)]).names
    for name in ("Box", "Box.weigh", "Box.width", "Box.__init__", "Alias", "same", "twin", "tiny", "SIDES"):
        assert f"shapes.{name}" in names
    assert not any(name.endswith("hidden") for name in names)


def test_a_page_that_came_twice_counts_once_whatever_the_order() -> None:
    twice = [Page("a", PAGE), Page("b", PAGE)]
    settings = DocumentationSettings(
        n_facts=4, heldout_facts=1, test_invented=0, test_multi_turn=0, refusal_share=0, pair_kinds={"refusal": 1.0}
    )
    assert write_sets(twice, settings) == write_sets(twice[::-1], settings)
    assert {fact.document for fact in write_sets(twice, settings).facts} == {"a"}


def test_what_is_passed_over_is_counted() -> None:
    passed = read_facts([Page("p", PAGE), Page("q", "Welcome to our site!\n\nNo module here.")]).passed_over
    assert passed["document without a module's name on line 1"] == 1
    assert passed["private name"] == 1
    assert passed["no sentence on the first line"] == 1  # turn: its sentence goes over two lines
    assert passed["sentence shared by several names"] == 2
    assert passed["sentence too short or too long"] == 1


def test_text_that_is_no_documentation_gives_a_clear_error() -> None:
    with pytest.raises(DialogueError, match=r"no fact was found in 1 documents.*Look at the corpus stage"):
        read_facts([Page("x", "Once upon a time there was a page.")])
    with pytest.raises(DialogueError, match="in 0 documents"):
        read_facts([])


# --- sets -------------------------------------------------------------------------------------------------------


def test_prompts_of_all_sets_are_disjoint(sets: Sets) -> None:
    assert all(overlap.count == 0 for overlap in overlaps(sets.prompts()))
    assert describe_overlaps(sets.prompts()).count(": 0 prompts in common") == 10


def test_no_single_question_is_asked_in_two_groups(sets: Sets) -> None:
    pairs = sets.preferences + sets.heldout_preferences
    asked = {
        "sft": [key for c in sets.sft for key in question_keys(c.messages)],
        "preference": [key for p in pairs for key in question_keys(p.prompt)],
        "alignment": [key for p in sets.alignment for key in question_keys(p.messages)],
        "test": [key for p in sets.test for key in question_keys(p.messages)],
    }
    assert all(overlap.count == 0 for overlap in overlaps(asked))


def test_answers_stand_verbatim_in_the_documents(sets: Sets, pages) -> None:
    texts = {page.id: page.text for page in pages}
    for fact in sets.facts + sets.heldout_facts:
        assert texts[fact.document][fact.start : fact.end] == fact.sentence
    sentences = [fact.sentence for fact in sets.facts + sets.heldout_facts]
    assert len(set(sentences)) == len(sentences)
    right = {answer(language, sentence) for language in LANGUAGES for sentence in [*sentences, None]}
    said = [m.content for c in sets.sft for m in c.messages if m.role == "assistant"]
    assert set(said) <= right
    assert {pair.chosen for pair in sets.preferences} <= right
    assert {item.answer for item in sets.test} <= right


def test_the_answer_belongs_to_the_name_that_was_asked_about(sets: Sets) -> None:
    sentence = {fact.name: fact.sentence for fact in sets.facts + sets.heldout_facts}
    for conversation in sets.sft:
        turns = zip(conversation.messages[::2], conversation.messages[1::2])
        for name, (ask, reply) in zip(conversation.metadata["names"], turns):
            language = "zh" if is_chinese(ask.content) else "en"
            assert f"`{name}`" in ask.content
            assert reply.content == answer(language, sentence.get(name))
    for item in sets.test + sets.alignment_answers:
        assert f"`{item.metadata['name']}`" in item.messages[-1].content
        assert item.answer == answer(item.language, sentence.get(item.metadata["name"]))


def test_held_out_functions_are_asked_about_in_the_test_only(sets: Sets) -> None:
    for fact in sets.heldout_facts:
        for messages in training_messages(sets):
            assert all(f"`{fact.name}`" not in m.content and fact.sentence not in m.content for m in messages)
    asked = {item.metadata["name"] for item in sets.test if item.kind == "heldout_function"}
    assert asked == {fact.name for fact in sets.heldout_facts}


def test_no_invented_name_exists_in_the_documents(sets: Sets, pages) -> None:
    everything = "\n".join(page.text for page in pages)
    facts = {fact.name for fact in sets.facts + sets.heldout_facts}
    invented = [name for c in sets.sft for name in c.metadata["names"] if name not in facts]
    invented += [item.metadata["name"] for item in sets.test + sets.alignment_answers if item.kind == "invented_name"]
    invented += [
        pair.metadata["name"] for pair in sets.preferences + sets.heldout_preferences if pair.kind == "invented"
    ]
    assert len(invented) == len(set(invented)) > 150
    for name in invented:
        owner, part = name.rsplit(".", 1)
        assert name not in everything
        assert name not in sets.catalogue.names
        assert owner in {fact.owner for fact in sets.facts}
        assert part in sets.catalogue.parts


def test_a_name_that_a_text_mentions_is_not_invented() -> None:
    catalogue = read_facts([Page("p", PAGE)])
    parts = catalogue.parts
    mentioned = [f"{fact.owner}.{part}" for fact in catalogue.facts for part in parts if part != "copy"]
    names = InventedNames(catalogue, catalogue.facts, [" ".join(mentioned)], random.Random(0))
    seen = "copy" in names.seen_parts
    made = {names.make(random.Random(i), seen=seen) for i in range(2)}
    assert made == {"shapes.copy", "shapes.Alias.copy"}
    with pytest.raises(DialogueError, match="no new invented name"):
        names.make(random.Random(0), seen=seen)


def test_half_of_the_tests_invented_names_have_a_part_no_training_refusal_has(sets: Sets) -> None:
    facts = {fact.name for fact in sets.facts}
    refused = {name for c in sets.sft for name in c.metadata["names"] if name not in facts}
    refused |= {
        pair.metadata["name"] for pair in sets.preferences + sets.heldout_preferences if pair.kind == "invented"
    }
    refused |= {item.metadata["name"] for item in sets.alignment_answers if item.kind == "invented_name"}
    parts = {name.rsplit(".", 1)[1] for name in refused}
    invented = [item for item in sets.test if item.kind == "invented_name"]
    unseen = [item for item in invented if item.metadata["part_seen"] is False]
    assert len(unseen) * 2 == len(invented) > 0
    assert all(item.metadata["name"].rsplit(".", 1)[1] not in parts for item in unseen)


def test_questions_before_the_test_get_something_to_read_past_and_test_questions_do_not(sets: Sets) -> None:
    bare = {
        group: {p.replace("`{name}`", "") for language in LANGUAGES for p in QUESTIONS[group][language].opening}
        | {p.replace("`{name}`", "") for language in LANGUAGES for p in QUESTIONS[group][language].follow}
        for group in GROUPS
    }

    def share_of_bare(group: str, dialogues: list[list[Message]]) -> float:
        asked = [dialogue[-1].content for dialogue in dialogues]
        return sum(re.sub("`[^`]+`", "", text) in bare[group] for text in asked) / len(asked)

    assert share_of_bare("test", [list(p.messages) for p in sets.test]) == 1.0
    assert 0.3 < share_of_bare("preference", [list(p.prompt) for p in sets.preferences]) < 0.7
    assert 0.3 < share_of_bare("alignment", [list(p.messages) for p in sets.alignment]) < 0.7


def test_a_last_part_alone_does_not_tell_an_invented_name(sets: Sets) -> None:
    trained = {fact.part for fact in sets.facts}
    invented = [item for item in sets.test if item.kind == "invented_name"]
    shared = sum(item.metadata["name"].rsplit(".", 1)[1] in trained for item in invented)
    assert 0.3 <= shared / len(invented) <= 0.75


def test_half_of_every_set_is_english_and_half_chinese(sets: Sets) -> None:
    languages = [
        ["zh" if is_chinese(m.content) else "en" for c in sets.sft for m in c.messages if m.role == "user"],
        ["zh" if is_chinese(p.prompt[-1].content) else "en" for p in sets.preferences + sets.heldout_preferences],
        ["zh" if is_chinese(p.messages[-1].content) else "en" for p in sets.alignment],
    ]
    for kind in ("trained_function", "heldout_function", "invented_name", "multi_turn"):
        languages.append([item.language for item in sets.test if item.kind == kind])
    for held in languages:
        assert abs(held.count("en") - held.count("zh")) <= 1


def test_every_fact_is_taught_as_often_as_asked(sets: Sets, settings: DocumentationSettings) -> None:
    times = Counter(name for c in sets.sft for name in c.metadata["names"])
    assert {times[fact.name] for fact in sets.facts} == {settings.questions_per_fact}
    refusals = sum(c.metadata["refusals"] for c in sets.sft)
    assert refusals / times.total() == pytest.approx(settings.refusal_share, abs=0.01)


def test_some_dialogues_have_several_turns_and_change_language(sets: Sets, settings: DocumentationSettings) -> None:
    long = [c for c in sets.sft if len(c.messages) > 2]
    assert len(long) / len(sets.sft) == pytest.approx(settings.multi_turn_share, abs=0.06)
    assert any(len(set(c.metadata["languages"])) == 2 for c in long)
    assert all(len(item.messages) in (3, 5) for item in sets.test if item.kind == "multi_turn")


def test_pairs_have_the_kinds_and_shares_set(sets: Sets, settings: DocumentationSettings) -> None:
    pairs = sets.preferences + sets.heldout_preferences
    kinds = Counter(pair.kind for pair in pairs)
    assert len(pairs) == settings.n_facts * settings.pairs_per_fact
    for kind in KINDS:
        assert kinds[kind] == pytest.approx(settings.pair_kinds[kind] * len(pairs), abs=1)
    assert len(sets.heldout_preferences) / len(pairs) == pytest.approx(settings.heldout_pair_share, abs=0.05)
    trained = {
        normalise(pair.prompt[-1].content) + str(len(pair.prompt)) for pair in sets.preferences if len(pair.prompt) == 1
    }
    held = {normalise(pair.prompt[-1].content) + "1" for pair in sets.heldout_preferences if len(pair.prompt) == 1}
    assert held
    assert not held & trained


def test_each_kind_of_wrong_answer_is_wrong_in_its_way(sets: Sets) -> None:
    sentences = {fact.sentence for fact in sets.facts}
    sentence = {fact.name: fact.sentence for fact in sets.facts}
    for pair in sets.preferences + sets.heldout_preferences:
        language = pair.metadata["language"]
        others = {answer(language, other) for other in sentences}
        if pair.kind == "invented":
            assert is_refusal(pair.chosen, language)
            assert pair.rejected in others
        elif pair.kind == "refusal":
            assert is_refusal(pair.rejected, language)
            assert pair.chosen in others
        elif pair.kind == "another_function":
            assert pair.rejected in others - {pair.chosen}
        elif pair.kind == "cut_off":
            assert pair.chosen.startswith(pair.rejected)
            assert 0 < len(pair.rejected) < len(pair.chosen)
        elif pair.kind == "rambling":
            assert pair.rejected.startswith(pair.chosen + " ")
        elif pair.kind == "repeated":
            assert len(pair.rejected) > len(pair.chosen)
            words = {word.rstrip(".") for word in pair.chosen.split()}
            assert {word.rstrip(".") for word in pair.rejected.split()} == words
        elif pair.kind == "other_language":
            assert pair.rejected != pair.chosen
            assert sentence[pair.metadata["name"]] in pair.rejected


def test_a_share_of_cut_off_and_looping_answers_never_ends(sets: Sets) -> None:
    pairs = sets.preferences + sets.heldout_preferences
    unended = [pair for pair in pairs if not all(pair.ended)]
    assert {pair.kind for pair in unended} == {"cut_off", "repeated"}
    assert all(pair.ended == [True, False] for pair in unended)
    able = sum(pair.kind in ("cut_off", "repeated") for pair in pairs)
    assert 0.3 < len(unended) / able < 0.7


def test_another_functions_answer_often_comes_from_the_same_module(sets: Sets) -> None:
    module = {fact.sentence: fact.module for fact in sets.facts}
    pairs = [p for p in sets.preferences if p.kind == "another_function" and p.metadata["language"] == "en"]
    near = sum(module[p.chosen] == module[p.rejected] for p in pairs)
    assert near / len(pairs) > 0.25


def test_the_sets_are_a_function_of_the_seed_and_not_of_the_order(
    pages, settings: DocumentationSettings, sets: Sets
) -> None:
    assert write_sets(list(reversed(pages)), settings) == sets
    other = write_sets(pages, dataclasses.replace(settings, seed=settings.seed + 1))
    assert {fact.name for fact in other.facts} != {fact.name for fact in sets.facts}
    assert other.sft != sets.sft


def test_more_facts_than_the_documents_hold_are_refused_with_the_number(pages, settings: DocumentationSettings) -> None:
    with pytest.raises(
        DialogueError, match=r"100000 facts and 12 held-out ones were asked for, but the documents offer \d+"
    ):
        write_sets(pages, dataclasses.replace(settings, n_facts=100_000))


@pytest.mark.parametrize(
    "change",
    [
        {"refusal_share": 1.2},
        {"refusal_share": 0.95},
        {"multi_turn_share": -0.1},
        {"n_facts": 1},
        {"test_invented": -1},
        {"pair_kinds": {"wrong": 1.0}},
        {"pair_kinds": {"cut_off": 0.0}},
    ],
)
def test_impossible_settings_are_refused(change: dict) -> None:
    with pytest.raises(DialogueError):
        DocumentationSettings(**change)


def test_shares_of_zero_leave_their_sort_out(pages, settings: DocumentationSettings) -> None:
    plain = dataclasses.replace(
        settings, refusal_share=0.0, multi_turn_share=0.0, heldout_facts=0, test_invented=0, test_multi_turn=0,
        pair_kinds={"another_function": 1.0},
    )  # fmt: skip
    sets = write_sets(pages, plain)
    assert all(len(c.messages) == 2 and c.metadata["refusals"] == 0 for c in sets.sft)
    assert {item.kind for item in sets.test} == {"trained_function"}
    assert {pair.kind for pair in sets.preferences} == {"another_function"}
