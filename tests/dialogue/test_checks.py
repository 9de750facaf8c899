from __future__ import annotations

import pytest

from chatloom.dialogue.checks import exact_match, is_refusal, politeness, politeness_accuracy, token_f1, tokens
from chatloom.dialogue.formats import read_preferences
from chatloom.dialogue.phrasings import answer


def test_tokens_are_words_and_single_cjk_characters() -> None:
    assert tokens("Don't use os.path 两次, ok_2!") == ["don", "t", "use", "os", "path", "两", "次", "ok_2"]
    assert tokens("ＡＢ かな") == ["ab", "か", "な"]


@pytest.mark.parametrize(
    ("said", "truth", "f1"),
    [
        ("a b c", "a b c", 1.0),
        ("a b", "c d", 0.0),
        ("a b c d", "a b", 2 * 0.5 * 1.0 / 1.5),
        ("a a a", "a", 2 * (1 / 3) / (4 / 3)),
        ("路径处理", "处理路径", 1.0),
        ("", "", 1.0),
        ("", "a", 0.0),
    ],
)
def test_token_f1_equals_hand_computed_values(said: str, truth: str, f1: float) -> None:
    assert token_f1(said, truth) == pytest.approx(f1)
    assert token_f1(truth, said) == pytest.approx(f1)


def test_exact_match_forgives_case_width_and_space_but_not_words_or_stops() -> None:
    assert exact_match(" Return  the SUM.\n", "return the sum.")
    assert not exact_match("Return the sum", "Return the sum.")
    assert not exact_match("Return the sum. Return the sum.", "Return the sum.")


def test_a_refusal_is_known_in_its_language() -> None:
    for language, other in (("en", "zh"), ("zh", "en")):
        refusal = answer(language, None)
        assert is_refusal(refusal)
        assert is_refusal(refusal, language)
        assert not is_refusal(refusal, other)
        assert not is_refusal(answer(language, "Return the sum of a and b."))


def test_politeness_is_read_off_plain_words() -> None:
    assert politeness("I'd be happy to help: it is 4.") == 1
    assert politeness("It is 4.") == 0
    assert politeness("It's obviously 4, get it together.") == -1
    assert politeness("Please, it is OBVIOUSLY 4.") == -1
    assert politeness_accuracy([("Kindly note: 4.", "4."), ("4.", "5."), ("Duh, 4.", "4.")]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least one"):
        politeness_accuracy([])


def test_the_word_rule_tells_polite_from_impolite_answers(shared_data) -> None:
    pairs = read_preferences(shared_data / "preference" / "en_rasbt_politeness_pairs.jsonl.gz").records
    orders = [(politeness(pair.chosen), politeness(pair.rejected)) for pair in pairs]
    assert politeness_accuracy([(pair.chosen, pair.rejected) for pair in pairs]) > 0.8
    assert sum(better < worse for better, worse in orders) < 0.02 * len(pairs)
