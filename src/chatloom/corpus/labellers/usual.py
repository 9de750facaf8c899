"""Limits that are usual in the field, as what a selection takes: data, so that each can be copied and changed.

Limits of the labels `rule_*` are not here but in `corpus/settings.py` (PRESETS) and `corpus/rules.py`, by language.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usual:
    """`keep`: condition for staying; `cut`: labels whose spans go; `labellers` that it needs."""

    labellers: tuple[str, ...]
    keep: str
    cut: tuple[str, ...]
    source: str


USUAL: dict[str, Usual] = {
    "c4": Usual(
        ("language", "c4"),
        "c4_sentences >= 3 and c4_curly_brackets == 0 and c4_lorem_ipsum == 0 and default(c4_bad_words, 0) == 0",
        ("c4_cut", "c4_citations", "c4_repeated"),
        "Raffel et al. 2020, section 2.2 (the data set's code keeps pages from 5 sentences on)",
    ),
    "refinedweb_url": Usual(
        ("url",),
        "not default(url_blocked, False) and default(url_score, 0) < 0.7",
        (),
        "block-lists as Penedo et al. 2023 (RefinedWeb), appendix G.1; the score and its limit are our own",
    ),
    "codex": Usual(
        ("code",),
        "code_line_mean <= 100 and code_line_max <= 1000 and code_alphanumeric_share >= 0.25 and not code_generated",
        (),
        "Chen et al. 2021, section 3.1 (says only `small` of the alphanumeric share; 0.25 as in The Stack's filters)",
    ),
    "starcoder": Usual(
        ("code",),
        "code_line_mean <= 100 and code_line_max <= 1000 and code_alphabetic_share >= 0.25",
        (),
        "Li et al. 2023 (StarCoder), section 3",
    ),
    "permissive_licence": Usual(
        ("code",),
        "code_licence in ('MIT', 'Apache-2.0', 'BSD-2-Clause', 'BSD-3-Clause', 'ISC', 'BSL-1.0', 'Unlicense', "
        "'CC0-1.0', 'Zlib', 'MulanPSL-2.0')",
        (),
        "LLaMA keeps Apache, BSD and MIT (Touvron et al. 2023, section 2.1)",
    ),
    "arxiv": Usual(
        ("tex",),
        "tex_sections >= 1",
        ("tex_cut",),
        "Touvron et al. 2023 (LLaMA), section 2.1, after Lewkowycz et al. 2022",
    ),
    "answers": Usual(
        ("question_answer",),
        "default(question_answer_score, question_answer_best) >= 3",
        (),
        "own choice; GPT-style web text took links of 3 karma (Radford et al. 2019, section 2.1)",
    ),
    "sentences": Usual(("language", "sentences"), "sentences_cut_share < 0.5", ("sentences_cut",), "own choice"),
    "one_language": Usual(
        ("language",),
        "language_confidence >= 0.65 or language in ('zh', 'ja', 'ko')",
        (),
        "FineWeb, Penedo et al. 2024, section 3.3; where scripts decide, confidence is a share and no probability",
    ),
}
