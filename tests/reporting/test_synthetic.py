"""The page of synthetic text: the funnel adds up, every filter is told, nothing in a text becomes markup."""

from __future__ import annotations

import re
from typing import Any

from chatloom.reporting.synthetic import reasons, render_synthetic_page

COUNTS: dict[str, Any] = {
    "all": {"": {"replies": 20, "passed": 14, "kept": 12, "dropped:copied": 1, "dropped:refusal": 3,
                 "dropped:word_count": 2, "dropped:near_copy": 2}},
    "template": {"story": {"replies": 20, "kept": 12, "dropped:refusal": 3}},
    "language": {"en": {"replies": 8, "kept": 4}, "zh": {"replies": 12, "kept": 8}},
    "cluster": {"zh-000": {"replies": 12, "kept": 8}},
}  # fmt: skip
CLUSTERS = [
    {"name": "en-000", "language": "en", "documents": 9, "terms": []},
    {"name": "zh-000", "language": "zh", "documents": 40, "terms": [{"text": "水稻"}, {"text": "土壤"}]},
]
EXAMPLES = [
    {"outcome": "kept", "prompt": "Write.", "text": "<script>alert(1)</script>", "template": "story", "detail": ""},
    {"outcome": "refusal", "prompt": "写。", "text": "抱歉，我不会。", "template": "story", "detail": "has the phrase"},
]


def page(**changes: Any) -> str:
    report = {"counts": COUNTS, "documents": 12, "replies": 20, "characters": 900, "prompts": 21, "tokens": 5000,
              "failed": 1, "seeds": {"seeds": 49}, "generator": "writer", **changes}  # fmt: skip
    return render_synthetic_page("written", report, CLUSTERS, EXAMPLES, {"ask": {"prompts": 21}})


def test_reasons_come_in_the_order_of_the_filters() -> None:
    assert reasons(COUNTS) == ["refusal", "word_count", "copied", "near_copy"]


def test_the_funnel_goes_from_what_was_asked_for_to_the_documents() -> None:
    svg = re.search(r"<svg.*?</svg>", page(), re.S)
    assert svg is not None
    left = [int(found) for found in re.findall(r"(\d+) replies", svg[0])]
    assert left == [21, 20, 17, 15, 14, 12]


def test_terms_counts_examples_and_settings_are_on_the_page() -> None:
    made = page()
    for text in ("水稻 · 土壤", "none", "refusal (1 shown)", "抱歉，我不会。", "ask.prompts", "writer", "zh-000"):
        assert text in made
    assert "without a reply" in made
    assert "without a reply" not in page(failed=0)


def test_the_page_needs_nothing_from_outside_and_no_text_is_markup() -> None:
    made = page()
    assert "<script" not in made
    assert "&lt;script&gt;alert(1)" in made
    assert not re.search(r"""(src|href)=["'](?!#)""", made)
    assert made == page()
