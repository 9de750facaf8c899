"""Promises of objectives: UL2's published table, refusals that say what to do, tokens that a vocabulary reserves."""

from __future__ import annotations

import json

import pytest

from chatloom.settings import SettingsError
from chatloom.tokens.denoising import DenoisingError
from chatloom.tokens.objective import Denoising, ObjectiveSettings, expected
from chatloom.tokens.reserved import MODE_TOKENS, mode_ids, n_reserved, reserve, sentinel_ids
from chatloom.tokens.vocabulary import Vocabulary, VocabularyError

TEXTS = ["the quick brown fox jumps over the lazy dog [NLU] <extra_id_0>"] * 5


@pytest.fixture(scope="module")
def plain() -> Vocabulary:
    return Vocabulary.train(TEXTS, 280)


def test_ul2_is_the_papers_table() -> None:
    # Tay et al. 2022, table 1: R (3, 0.15), (8, 0.15); S (L/4, 0.25); X (3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5)
    noises = ObjectiveSettings.parse({"kind": "ul2"}).noises
    assert {(n.mode, n.mean_span, n.rate) for n in noises} == {
        ("R", 3, 0.15), ("R", 8, 0.15), ("S", None, 0.25), ("X", 3, 0.5), ("X", 8, 0.5), ("X", 64, 0.15),
        ("X", 64, 0.5),
    }  # fmt: skip
    assert all(noise.mode_token for noise in noises)
    assert ObjectiveSettings.parse({"kind": "ul2"}).shares == pytest.approx([1 / 7] * 7)
    [t5] = ObjectiveSettings.parse({"kind": "span-corruption"}).noises
    assert (t5.rate, t5.mean_span, t5.mode_token) == (0.15, 3.0, False)
    assert ObjectiveSettings.parse({}).noises == ()


def test_a_mixture_of_ones_own_is_read() -> None:
    # U-PaLM's (Tay et al. 2022b): half prefix language modelling, a quarter long spans, a quarter regular ones
    chosen = ObjectiveSettings.parse(
        {
            "kind": "ul2",
            "mode_tokens": False,
            "denoisers": [
                {"mode": "S", "share": 2},
                {"mode": "X", "mean_span": 32, "rate": 0.15},
                {"mode": "R", "mean_span": 3, "rate": 0.15},
            ],
        }
    )
    assert chosen.shares.tolist() == [0.5, 0.25, 0.25]
    assert [noise.name for noise in chosen.noises] == ["S uniform", "X 32 15%", "R 3 15%"]
    assert not any(noise.mode_token for noise in chosen.noises)


def test_denoisers_that_make_no_sense_are_refused() -> None:
    for denoiser, message in (
        ({"mode": "S", "mean_span": 3}, "S takes one span"),
        ({"mode": "R", "rate": 0.15}, "needs `rate` and `mean_span`"),
        ({"mode": "X", "mean_span": 3}, "needs `rate` and `mean_span`"),
    ):
        with pytest.raises(DenoisingError, match=rf"objective.denoisers.0.*{message}"):
            _ = ObjectiveSettings.parse({"kind": "ul2", "denoisers": [denoiser]}).noises
    for values, name in (({"rate": 0.2}, "rate"), ({"kind": "ul2", "target_share": 0.5}, "target_share")):
        with pytest.raises(DenoisingError, match=rf"objective\.{name} is for .* leave it out"):
            ObjectiveSettings.parse(values).check()
    for values in ({"rate": 0}, {"rate": 1}, {"mean_span": 0.5}, {"kind": "mlm"}):
        with pytest.raises(SettingsError):
            ObjectiveSettings.parse(values)


def test_reserved_tokens_come_last_and_no_text_makes_them(plain: Vocabulary) -> None:
    made = reserve(plain, 5)
    assert made.size == plain.size + n_reserved(5) == plain.size + 8
    assert sentinel_ids(made) == list(range(plain.size, plain.size + 5))
    assert list(mode_ids(made).values()) == list(range(plain.size + 5, plain.size + 8))
    assert made.layout.entries[: plain.size] == plain.layout.entries
    for text in (*TEXTS, "<extra_id_4>", *MODE_TOKENS.values()):
        assert made.encode(text) == plain.encode(text)
    assert made.decode([*made.encode("a fox"), sentinel_ids(made)[1]], special=True) == "a fox<extra_id_1>"
    assert Vocabulary.from_json(made.to_json()) == made != plain


def test_reserving_again_adds_what_is_missing_and_moves_nothing(plain: Vocabulary) -> None:
    five = reserve(plain, 5)
    assert reserve(five, 5) == five
    assert reserve(plain, 0) is plain
    seven = reserve(five, 7)
    assert seven.size == five.size + 2
    assert sentinel_ids(seven) == [*sentinel_ids(five), five.size, five.size + 1]
    assert mode_ids(seven) == mode_ids(five)


def test_a_name_that_is_an_ordinary_entry_is_refused(plain: Vocabulary) -> None:
    content = json.loads(plain.to_json())
    content["model"]["vocab"]["[NLU]"] = plain.size
    with pytest.raises(VocabularyError, match=r"\[NLU\] is an ordinary entry"):
        reserve(Vocabulary.from_json(json.dumps(content)), 2)


def test_a_vocabulary_without_the_tokens_is_refused_with_what_to_do(plain: Vocabulary) -> None:
    def of(kind: str, vocabulary: Vocabulary, **values: object) -> Denoising | None:
        return Denoising.of(ObjectiveSettings.parse({"kind": kind, **values}), vocabulary, 128, 0, bidirectional=False)

    assert of("language-modeling", plain) is None
    assert of("prefix-lm", plain) is not None  # needs none
    with pytest.raises(DenoisingError, match=r"needs sentinel tokens .* has 0.*`sentinels: 100` in stage `tokenizer`"):
        of("span-corruption", plain)
    with pytest.raises(DenoisingError, match=r"sentinel tokens .* and the mode tokens \[NLU\], \[NLG\], \[S2S\]"):
        of("ul2", plain)
    only_s = [{"mode": "S", "rate": 0.25}]
    with pytest.raises(DenoisingError, match=r"mode tokens .* or set `objective.mode_tokens: false`"):
        of("ul2", plain, denoisers=only_s)
    assert of("ul2", plain, denoisers=only_s, mode_tokens=False) is not None
    made = of("ul2", reserve(plain, 10))
    assert made is not None
    assert all(length <= 128 for length in made.longest)


def test_what_a_plan_expects_is_what_full_rows_hold() -> None:
    t5 = expected(ObjectiveSettings.parse({"kind": "span-corruption"}), 1024, 100)
    # longest text 929: 139 of noise in 46 spans, 929 + 2 * 46 + 1 = 1022 places, 139 + 46 + 1 = 186 with loss
    assert t5.growth == pytest.approx(1022 / 929)
    assert t5.loss_share == pytest.approx(186 / 1022)
    half = expected(ObjectiveSettings.parse({"kind": "prefix-lm"}), 1024, 0)
    assert (half.growth, half.loss_share) == (1.0, 0.5)
    ul2 = expected(ObjectiveSettings.parse({"kind": "ul2"}), 1024, 100)
    assert 0.3 < ul2.loss_share < 0.35
    assert "X 64 50%" in ul2.table
