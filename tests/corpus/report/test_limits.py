"""Limits that figures draw in are those that decide: of rules, the language, and comparisons in conditions."""

from __future__ import annotations

from chatloom.corpus.report.limits import comparisons, limits_by_label
from chatloom.corpus.selection.choice import Case, SelectionSettings
from chatloom.corpus.settings import LanguageSettings, RuleSettings


def test_comparisons_with_numbers_are_found_wherever_they_stand() -> None:
    condition = "1 < default(a, 0) <= -2.5 or not (b == 3) and c > d and language == 'zh' and 10 >= e + 1 and f != 2"
    assert list(comparisons(condition)) == [("a", ">", 1.0), ("a", "<=", -2.5), ("b", "==", 3.0)]


def test_limits_of_rules_language_and_conditions() -> None:
    settings = SelectionSettings(
        language=LanguageSettings(min_confidence=0.4),
        rules=RuleSettings(preset="none", limits={"word_count": {"*": (20, None), "zh": (30, 900)}}),
        keep="quality > 0.5 and lines < 9",
        cases=(Case(when="language == 'zh'", keep="quality > 0.2"),),
    )
    found = limits_by_label(settings, ["en", "zh", "ja", "other"])
    assert [(row["language"], row["stays"], row["value"]) for row in found["rule_word_count"]] == [
        ("en", ">=", 20), ("zh", ">=", 30), ("zh", "<=", 900), ("ja", ">=", 30), ("ja", "<=", 900), ("other", ">=", 20)
    ]  # fmt: skip
    assert next(row["rule"] for row in found["rule_word_count"]) == ["rules", "word_count"]
    assert found["language_confidence"] == [
        {"value": 0.4, "stays": ">=", "language": "", "rule": ["language", "uncertain_language"]}
    ]
    assert [(row["value"], row["rule"]) for row in found["quality"]] == [
        (0.5, ["keep", "quality > 0.5"]), (0.2, ["keep", "quality > 0.2"])
    ]  # fmt: skip
    assert set(found) == {"rule_word_count", "language_confidence", "quality", "lines"}
