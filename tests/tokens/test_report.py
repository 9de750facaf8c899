"""Promises of the vocabulary report: counts checked by hand, entries a person can read, faults that show."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chatloom.tokens import fuzz
from chatloom.tokens.figures import Held, vocabulary_figures, wordpiece_figures
from chatloom.tokens.fuzz import random_bytes, random_text, round_trips
from chatloom.tokens.report import compare, count_words, digit_figures, entry_figures, measure, readable
from chatloom.tokens.vocabulary import Vocabulary, VocabularyError
from chatloom.tokens.wordpiece import WordPiece

TEXTS = ["aaaa aaaa 中文中文 zz zz"] * 3
ITEMS = [("en", "a", "aaaa aaaa"), ("zh", "a", "中文"), ("zh", "b", "龘"), ("en", "b", "")]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(TEXTS, 300, allow_smaller=True)


def test_counts_are_those_of_the_texts(vocabulary: Vocabulary) -> None:
    measured = measure(vocabulary, ITEMS)
    tokens = {text: len(vocabulary.encode(text)) for _, _, text in ITEMS}
    found = measured.figures()
    en, zh = found["languages"]["en"], found["languages"]["zh"]
    assert (en["texts"], en["bytes"], en["characters"], en["words"]) == (2, 9, 9, 2)
    assert (zh["texts"], zh["bytes"], zh["characters"], zh["words"]) == (2, 9, 3, 3)
    assert zh["tokens"] == tokens["中文"] + 3
    assert zh["tokens_per_character"] == round((tokens["中文"] + 3) / 3, 4)
    assert en["bytes_per_token"] == round(9 / tokens["aaaa aaaa"], 4)
    assert en["fertility"] == round(tokens["aaaa aaaa"] / 2, 4)
    assert found["all"]["tokens"] == sum(tokens.values()) == int(measured.uses.sum())
    assert found["sources"]["b"]["bytes"] == 3
    assert found["sources"]["a"]["bytes"] == 15
    assert measured.megabytes_per_second > 0
    with pytest.raises(VocabularyError, match="no text"):
        measure(vocabulary, [("en", "a", "")])


def test_words_are_runs_of_letters_and_single_han_characters() -> None:
    assert count_words("Hello, world: naïve e\u0301 x2 中文と日本 don't!") == 5 + 5 + 2
    assert count_words(" ,.!？。\n") == 0


def test_idle_rare_and_broken_entries_are_counted(vocabulary: Vocabulary) -> None:
    uses = measure(vocabulary, [("en", "a", "aaaa aaaa " * 9 + "龘 zz")]).uses
    found = entry_figures(vocabulary, uses)
    learnt = [i for i in range(6, vocabulary.size) if vocabulary.bytes_per_id[i] > 1]
    assert found["learnt"] == len(learnt)
    assert found["unused"] == sum(uses[i] == 0 for i in learnt)
    assert found["under_trained"] == sum(0 < uses[i] < 5 for i in learnt) > 0
    assert "中文中文" in found["unused_examples"]
    assert found["broken_character_share"] == round(3 / uses.sum(), 4)
    assert found["single_byte_share"] > found["broken_character_share"]
    assert found["longest"][0] == {"entry": "中文中文", "bytes": 12}
    assert found["most_used"][0]["uses"] == max(uses[learnt])
    assert found["unreachable"] == 0


def test_entries_that_no_text_reaches_are_found(vocabulary: Vocabulary) -> None:
    content = json.loads(vocabulary.to_json())
    content["model"]["vocab"]["qq"] = len(content["model"]["vocab"])  # no merge makes it
    odd = Vocabulary.from_json(json.dumps(content))
    found = entry_figures(odd, np.zeros(odd.size, dtype=np.int64))
    assert (found["unreachable"], found["unreachable_examples"]) == (1, ["qq"])


def test_entries_are_readable_without_mojibake() -> None:
    assert readable(" été\n".encode()) == "␣été↵"
    assert readable("中文".encode()[:4]) == "中⟨E6⟩"
    assert readable(b"\x96\x87a") == "⟨96⟩⟨87⟩a"
    assert readable("\t\x00\u200d".encode()) == "⇥⟨U+0000⟩⟨U+200D⟩"
    vocabulary = Vocabulary.train(["für Straße 文本文本 " * 9], 320, allow_smaller=True)
    shown = "".join(readable(entry) for entry in vocabulary.layout.entries[6:])
    assert not set(shown) & set("Ġ�Ã")  # GPT-2's letters, the replacement sign, UTF-8 read as Latin-1
    assert all(readable(entry) for entry in vocabulary.layout.entries)


def test_digits_show_how_numbers_are_cut() -> None:
    text = " ".join(f"{i:02d}" for i in range(100)) + " "
    two = digit_figures(Vocabulary.train([text * 9], 500, digits=2, allow_smaller=True))
    assert (two["longest_run"], two["one_token"]) == (2, {"1_digits": 10, "2_digits": 100, "3_digits": 0})
    assert two["examples"]["12345"] == ["12", "34", "5"]
    one = digit_figures(Vocabulary.train([text * 9], 300, digits=1, allow_smaller=True))
    assert (one["longest_run"], one["one_token"]["2_digits"]) == (1, 0)


def test_two_vocabularies_are_compared_on_the_same_text(vocabulary: Vocabulary) -> None:
    other = Vocabulary.train(["qq qq"] * 3, 264, allow_smaller=True)
    found = compare(vocabulary, other, ITEMS)
    row = found["bytes_per_token"]["en"]
    assert row["ratio"] == round(len(other.encode("aaaa aaaa")) / len(vocabulary.encode("aaaa aaaa")), 4) > 1
    assert row["theirs"] < row["ours"]
    assert found["shared_entries"] == 0.0
    assert compare(vocabulary, vocabulary, ITEMS)["shared_entries"] == 1.0


def test_random_texts_and_bytes_come_back(vocabulary: Vocabulary) -> None:
    found = round_trips(vocabulary, 400, seed=3)
    assert (found["failed"], found["byte_strings_failed"], found["special_tokens_forged"]) == (0, 0, 0)
    assert found["lone_surrogate_refused"]
    assert round_trips(vocabulary, 50, seed=3) == round_trips(vocabulary, 50, seed=3)


def test_the_fuzz_is_odd_enough() -> None:
    import random

    chance = random.Random(0)
    texts = "".join(random_text(chance, ["<|end|>"]) for _ in range(300))
    assert "<|end|>" in texts
    assert {"L", "M", "N", "S", "Z", "C"} <= {__import__("unicodedata").category(c)[0] for c in texts}
    assert max(texts) > "\U00020000"
    broken = 0
    for _ in range(300):
        try:
            random_bytes(chance).decode("utf-8")
        except UnicodeDecodeError:
            broken += 1
    assert 100 < broken < 300


class _Broken:
    """A vocabulary that forgets one character, and takes a typed name for the token."""

    def __init__(self, inner: Vocabulary) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        ids = self._inner.encode_batch([text.replace("a", "") for text in texts])
        return [[5, *found] if "<|end|>" in text else found for text, found in zip(texts, ids)]


def test_a_broken_vocabulary_is_found_out(vocabulary: Vocabulary) -> None:
    found = round_trips(_Broken(vocabulary), 200)  # type: ignore[arg-type]
    assert found["failed"] > 20
    assert found["special_tokens_forged"] > 3
    assert found["examples"]
    with pytest.raises(VocabularyError, match=r"random texts did not come back.*it is broken"):
        vocabulary_figures(_Broken(vocabulary), Held("x", ITEMS))  # type: ignore[arg-type]
    assert fuzz.RANGES[0] == (0x00, 0x1F)


def test_all_figures_are_json_and_say_what_they_were_measured_on(vocabulary: Vocabulary) -> None:
    held = Held("held-out documents", ITEMS, [("und", "conversations", "zz zz")])
    figures = vocabulary_figures(vocabulary, held, {"other": vocabulary})
    assert json.loads(json.dumps(figures))["compression"]["measured_on"] == "held-out documents"
    assert figures["compression"]["documents"]["bytes"] == 18
    assert figures["compression"]["conversations"]["bytes"] == 5
    assert figures["compression"]["all"]["bytes"] == 23
    assert figures["comparisons"]["other"]["bytes_per_token"]["all"]["ratio"] == 1.0
    again = vocabulary_figures(vocabulary, held, {"other": vocabulary})
    assert {**again, "timing": 0} == {**figures, "timing": 0}  # only the time differs from run to run


def test_wordpiece_figures_tell_what_is_lost() -> None:
    words = WordPiece.train(TEXTS, 60, allow_smaller=True)
    found = wordpiece_figures(words, Held("x", ITEMS))
    assert found["vocabulary"]["lossless"] is False
    assert found["vocabulary"]["unknown_share"] > 0
    assert found["vocabulary"]["texts_that_come_back"] < 4
    assert found["compression"]["languages"]["zh"]["bytes"] == 9
