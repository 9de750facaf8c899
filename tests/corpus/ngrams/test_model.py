"""Promises of the n-gram model: it is a probability distribution, the formula's, whatever the size of memory."""

from __future__ import annotations

import itertools
import json
import math
import random
import tracemalloc
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from corpus_samples import auc, shuffled, texts_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatloom.corpus.ngrams.model import NgramModel
from chatloom.corpus.ngrams.probabilities import FALLBACK, discounts_of
from chatloom.corpus.ngrams.table import KeyTable
from chatloom.corpus.ngrams.training import NgramSettings, NgramTrainer
from chatloom.corpus.ngrams.units import Pieces, Words
from chatloom.errors import ChatloomError
from chatloom.settings import SettingsError
from chatloom.tokens.vocabulary import Vocabulary

WORDS = ["ant", "bee", "cat", "dog", "eel"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=1, max_size=8).filter(any)
UNSEEN = "zebra"


def trained(folder: Path, texts: list[str], *, memory_bytes: int = 256 << 20, **values: object) -> NgramModel:
    with NgramTrainer(folder, NgramSettings.parse(values), memory_bytes=memory_bytes) as trainer:
        trainer.add(texts)
        trainer.finish()
    return NgramModel.load(folder)


def spelling_nats(model: NgramModel, word: str) -> float:
    """What the spelling of a word costs, from the counts in model.json: 10 % of the mass is uniform."""
    counts = np.array(model.description["spelling"], float)
    shares = 0.9 * counts / counts.sum() + 0.1 / 257
    return -float(sum(np.log(shares[b]) for b in word.encode()) + np.log(shares[256]))


def distribution(model: NgramModel, context: list[str], words: list[str]) -> dict[str, float]:
    """p(w | context) for known words, and for the unknown one (without its spelling)."""
    found = {}
    for word in [*words, UNSEEN]:
        nats = -model.logprobs(" ".join([*context, word]))[-1]
        known = bool(model.is_known(word)[0])
        name = word if known else "unknown"
        found[name] = math.exp(-(nats if known else nats - spelling_nats(model, word)))
    return found


class Reference:
    """Modified Kneser-Ney by dictionaries, straight from the formula; nothing is shared with the tables."""

    def __init__(self, texts: list[list[str]], order: int, min_count: int, threshold: list[int]) -> None:
        counts = Counter(word for text in texts for word in text)
        self.vocabulary = {word for word, n in counts.items() if n >= min_count} | {"unknown"}
        self.order = order
        raw = [Counter() for _ in range(order + 1)]
        left: list[dict[tuple[str, ...], set[str]]] = [defaultdict(set) for _ in range(order + 1)]
        for text in texts:
            padded = ["<s>"] * order + [word if word in self.vocabulary else "unknown" for word in text]
            for end in range(order, len(padded)):
                for n in range(1, order + 1):
                    gram = tuple(padded[end - n + 1 : end + 1])
                    raw[n][gram] += 1
                    left[n][gram].add(padded[end - n])
        self.adjusted = [
            {g: c if n == order or g[0] == "<s>" else len(left[n][g]) for g, c in raw[n].items()}
            for n in range(order + 1)
        ]
        self.kept = [{g for g, c in raw[n].items() if c > threshold[n]} for n in range(order + 1)]
        self.discounts = [self._discounts(Counter(self.adjusted[n].values())) for n in range(order + 1)]

    @staticmethod
    def _discounts(seen: Counter[int]) -> tuple[float, ...]:
        n1, n2, n3, n4 = (seen[k] for k in (1, 2, 3, 4))
        if not n1 or not n2:
            return (0.5, 1.0, 1.5)
        y = n1 / (n1 + 2 * n2)
        if n3:
            found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
            if all(0 < d < k for k, d in enumerate(found, 1)):
                return found
        return (y, y, y)

    def probability(self, context: tuple[str, ...], word: str) -> float:
        n = len(context) + 1
        lower = self.probability(context[1:], word) if context else 1 / len(self.vocabulary)
        grams = {g: a for g, a in self.adjusted[n].items() if g[:-1] == context}
        if not grams:
            return lower
        total = sum(grams.values())
        used = {g: a - self.discounts[n][min(a, 3) - 1] for g, a in grams.items() if g in self.kept[n]}
        gram = (*context, word)
        return used.get(gram, 0.0) / total + (1 - sum(used.values()) / total) * lower


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, st.integers(1, 4), st.integers(1, 2), st.sampled_from([[], [0, 1], [0, 0, 1], [0, 1, 2]]))
def test_probabilities_are_the_formulas_and_sum_to_one_in_every_context(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], order: int, min_count: int, prune: list[int]
) -> None:
    prune = prune[:order]
    model = trained(tmp_path_factory.mktemp("m"), texts, order=order, min_count=min_count, prune=prune)
    thresholds = [0, *[prune[min(n, len(prune)) - 1] if prune else 0 for n in range(1, order + 1)]]
    reference = Reference([text.split() for text in texts], order, min_count, thresholds)
    rng = random.Random(0)
    contexts = [[], *[[rng.choice([*WORDS, UNSEEN]) for _ in range(rng.randint(1, 5))] for _ in range(5)]]
    for context in contexts:
        found = distribution(model, context, WORDS)
        assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
        names = [word if word in reference.vocabulary else "unknown" for word in context]
        history = tuple((["<s>"] * order + names)[len(names) + 1 :]) if order > 1 else ()
        for word, probability in found.items():
            assert probability == pytest.approx(reference.probability(history, word), rel=1e-5)


def test_order_one_is_the_unigram_model_by_hand(tmp_path: Path) -> None:
    # counts 4, 3, 2, 1 and no word seen more often: n1 = n2 = n3 = n4 = 1
    model = trained(tmp_path, ["ant bee ant cat bee", "ant dog ant bee cat"], order=1, min_count=1)
    y = 1 / 3
    d1, d2, d3 = 1 - 2 * y, 2 - 3 * y, 3 - 4 * y
    left_over = (d1 + d2 + 2 * d3) / 10
    by_hand = {"ant": 4 - d3, "bee": 3 - d3, "cat": 2 - d2, "dog": 1 - d1, "unknown": 0.0}
    found = distribution(model, ["bee"], WORDS)
    for word, count in by_hand.items():
        assert found[word] == pytest.approx(count / 10 + left_over / 5, rel=1e-6)


def test_a_trigram_is_the_one_computed_by_hand(tmp_path: Path) -> None:
    """Texts too small for estimated discounts: D = 0.5, 1.0, 1.5 at every order where n1 or n2 is 0, else Y."""
    model = trained(tmp_path, ["ant bee cat", "ant bee dog", "eel bee cat"], order=3, min_count=1)
    # trigrams: <s><s>ant 2, <s>ant bee 2, ant bee cat, ant bee dog, <s><s>eel, <s>eel bee, eel bee cat: n1 5, n2 2
    y3 = 5 / 9
    # bigrams: <s>ant 2, <s>eel 1 (at a text's start: occurrences); ant bee 1, eel bee 1, bee cat 2, bee dog 1
    y2 = 4 / 8
    # unigrams: different units before: ant 1, eel 1, bee 2, cat 1, dog 1
    y1 = 4 / 6
    unigram = (1 - y1) / 6 + (5 * y1 / 6) / 6  # cat, with the uniform share of 5 words and the unknown one
    bigram = (2 - y2) / 3 + (2 * y2 / 3) * unigram
    trigram = (1 - y3) / 2 + (2 * y3 / 2) * bigram
    assert math.exp(model.logprobs("ant bee cat")[2]) == pytest.approx(trigram, rel=1e-6)
    # a context that was never seen backs off to the bigram, at no cost
    assert math.exp(model.logprobs("dog bee cat")[2]) == pytest.approx(bigram, rel=1e-6)


def test_discounts_are_the_published_formula_and_fall_back_in_two_steps() -> None:
    assert discounts_of(np.array([9, 100, 40, 20, 10])) == pytest.approx(
        (1 - 2 * (5 / 9) * 0.4, 2 - 3 * (5 / 9) * 0.5, 3 - 4 * (5 / 9) * 0.5)
    )
    assert discounts_of(np.array([0, 4, 2, 0, 0])) == (0.5, 0.5, 0.5)
    assert discounts_of(np.array([0, 0, 5, 5, 5])) == FALLBACK
    assert discounts_of(np.array([0, 5, 0, 5, 5])) == FALLBACK


def test_unseen_words_have_mass_and_cost_their_spelling(tmp_path: Path) -> None:
    model = trained(tmp_path, ["the cat sat on the mat", "the dog sat on the log"], order=3, min_count=1)
    short, long = (model.score([f"the {word}"]) for word in ("zat", "zatzatzat"))
    assert np.isfinite(long.nats[0])
    assert long.n_unknown[0] == short.n_unknown[0] == 1
    assert long.nats[0] - short.nats[0] == pytest.approx(spelling_nats(model, "zat") * 2, rel=0.3)
    likely, strange = (model.score([f"the {word}"]).nats[0] for word in ("tac", "qxj"))
    assert likely < strange  # letters that the words of the reference text are made of


def test_rare_words_become_the_unknown_word(tmp_path: Path) -> None:
    model = trained(tmp_path, ["ant ant bee bee cat"], order=2, min_count=2)
    assert model.is_known("ant bee cat dog").tolist() == [True, True, False, False]
    assert model.description["types"] == 2


@pytest.mark.parametrize("order", [1, 2, 4])
def test_scores_do_not_depend_on_the_texts_beside_them(tmp_path: Path, order: int) -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choices([*WORDS, "新", "词", "qq"], k=rng.randint(0, 300))) for _ in range(60)]
    model = trained(tmp_path, texts[:20], order=order)
    together = model.score(texts)
    alone = [model.score([text]) for text in texts]
    assert together.nats.tolist() == [item.nats[0] for item in alone]
    assert together.n_units.tolist() == [item.n_units[0] for item in alone]
    assert together.nats[3] == pytest.approx(-model.logprobs(texts[3]).sum())
    backwards = model.score(texts[::-1])
    assert backwards.nats[::-1].tolist() == together.nats.tolist()


def test_texts_without_words_have_no_perplexity(tmp_path: Path) -> None:
    scores = trained(tmp_path, ["ant bee"], order=2).score(["", " \n", "ant"])
    assert scores.n_units.tolist() == [0, 0, 1]
    assert np.isnan(scores.perplexity[:2]).all()
    assert np.isnan(scores.bits_per_byte[:2]).all()
    assert scores.bits_per_byte[2] == pytest.approx(scores.nats[2] / math.log(2) / 3)
    assert scores.perplexity[2] == pytest.approx(math.exp(scores.nats[2]))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("prune", [[], [0, 0, 1]])
def test_training_in_small_pieces_gives_the_bytes_of_training_at_once(tmp_path: Path, prune: list[int]) -> None:
    rng = random.Random(2)
    words = [a + b for a, b in itertools.product("bcdfghjklm", "aeiouxyz")]
    weights = [1 / (i + 1) for i in range(len(words))]
    texts = [" ".join(rng.choices(words, weights, k=rng.randint(0, 90))) for _ in range(400)]
    values = {"order": 3, "prune": prune}
    trained(tmp_path / "once", texts, **values)
    with NgramTrainer(tmp_path / "pieces", NgramSettings.parse(values), memory_bytes=1 << 17) as trainer:
        for first in range(0, len(texts), 7):
            trainer.add(texts[first : first + 7])
        trainer.finish()
    assert files(tmp_path / "once") == files(tmp_path / "pieces")


def test_memory_beyond_the_bound_is_a_few_bytes_an_ngram(tmp_path: Path) -> None:
    """Six times the text: only the index of the tables grows, 4 bytes for every n-gram that is kept."""
    rng = np.random.default_rng(0)
    words = ["".join(letters) for letters in itertools.product("bcdfghjk", "aeiouxyz", "lmnpqrst")]
    peaks, sizes = [], []
    for name, count in (("small", 80), ("large", 480)):
        with NgramTrainer(tmp_path / name, NgramSettings(order=3), memory_bytes=1 << 20) as trainer:
            tracemalloc.start()
            for _ in range(count // 8):
                trainer.add([" ".join(words[i] for i in rng.integers(0, 512, 500)) for _ in range(8)])
            sizes.append(sum(trainer.finish()["n_grams"]))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert sizes[1] > 4 * sizes[0]
    assert peaks[0] < 2 << 20
    assert peaks[1] - peaks[0] < 6 * (sizes[1] - sizes[0])


def test_pruning_makes_tables_smaller(tmp_path: Path) -> None:
    texts = ["ant bee cat dog", "ant bee cat eel", "bee cat dog ant"]
    whole = trained(tmp_path / "whole", texts, order=3, min_count=1).description["n_grams"]
    pruned = trained(tmp_path / "pruned", texts, order=3, min_count=1, prune=[0, 0, 1]).description["n_grams"]
    assert pruned[:2] == whole[:2]
    # seen twice: <s> <s> ant, <s> ant bee, ant bee cat, bee cat dog
    assert pruned[2] == 4 < whole[2]


def test_pieces_of_a_vocabulary_can_be_counted_instead_of_words(tmp_path: Path) -> None:
    texts = ["the cat sat on the mat. " * 5, "猫坐在垫子上。" * 5]
    vocabulary = Vocabulary.train(texts, 300, allow_smaller=True)
    with NgramTrainer(tmp_path, NgramSettings(order=2), Pieces(vocabulary)) as trainer:
        trainer.add(texts)
        trainer.finish()
    model = NgramModel.load(tmp_path, vocabulary)
    text = "the mat sat 猫 ßß"
    scores = model.score([text])
    assert scores.n_units[0] == len(vocabulary.encode(text))
    assert scores.n_bytes[0] == len(text.encode())
    assert scores.n_unknown[0] == 0
    context = np.array(vocabulary.encode("the"))
    hashes = model.cutter.closed_vocabulary()
    assert hashes is not None
    total = 0.0
    for piece in range(vocabulary.size):  # every entry, special ones too, after one context
        from chatloom.corpus.ngrams.units import Stream

        ids = np.append(context, piece)
        stream = Stream(hashes[ids], np.array([0, len(ids)]), np.array([1]))
        total += math.exp(model._unit_logprobs(stream)[0][-1])
    assert total == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ChatloomError, match="give that vocabulary"):
        NgramModel.load(tmp_path)
    with pytest.raises(ChatloomError, match="entries, found one of"):
        NgramModel.load(tmp_path, Vocabulary.train(["ab ab ab"], 264, allow_smaller=True))


def test_a_damaged_model_is_refused_with_the_name_of_its_file(tmp_path: Path) -> None:
    trained(tmp_path, ["ant bee cat"], order=2)
    (tmp_path / "2.keys.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ChatloomError, match=r"2\.keys\.npy"):
        NgramModel.load(tmp_path)
    (tmp_path / "2.keys.npy").unlink()
    with pytest.raises(ChatloomError, match=r"2\.keys\.npy: no such file"):
        NgramModel.load(tmp_path)
    np.save(tmp_path / "2.keys.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ChatloomError, match=r"2\.keys\.npy"):
        NgramModel.load(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text("utf-8"))
    (tmp_path / "model.json").write_text(json.dumps(description | {"format": 99}), "utf-8")
    with pytest.raises(ChatloomError, match="format 99"):
        NgramModel.load(tmp_path)
    with pytest.raises(ChatloomError, match="give the folder of a trained model"):
        NgramModel.load(tmp_path / "nowhere")


def test_no_words_is_an_error_and_leaves_no_scratch_files(tmp_path: Path) -> None:
    with NgramTrainer(tmp_path) as trainer:
        trainer.add(["", " \n"])
        with pytest.raises(ChatloomError, match="no words"):
            trainer.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prune": [0, 2, 1]}, "must not fall"),
        ({"prune": [1]}, "raise min_count"),
        ({"order": 2, "prune": [0, 0, 1]}, "3 numbers"),
        ({"order": 0}, "order"),
    ],
)
def test_settings_that_make_no_model_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        NgramSettings.parse(values)


def test_tables_find_what_they_hold_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 3, 1000, 5000):
        keys = np.unique(np.concatenate([rng.integers(0, 2**64, size, np.uint64), rng.integers(0, 9, size, np.uint64)]))
        table = KeyTable.of(keys)
        found, place = table.find(keys)
        assert found.all()
        assert np.array_equal(place, np.arange(len(keys)))
        others = np.setdiff1d(rng.integers(0, 2**64 - 1, 1000, np.uint64), keys)
        assert not table.find(others)[0].any()


def test_real_text_is_told_from_shuffled_text(tmp_path: Path, shared_data: Path) -> None:
    """English and Chinese, learned from other books than those that are scored."""
    for number, (name, held_out) in enumerate((("en_novels_a", "Conrad"), ("zh_vernacular_novels", "红楼梦"))):
        parts = texts_of(shared_data / "pretrain" / f"{name}.jsonl.gz")
        train = [text for key, text in parts if held_out not in key][:700]
        real = [text[:1500] for key, text in parts if held_out in key][:120]
        model = trained(tmp_path / name, train, order=3)
        false = [shuffled(text, Words(), seed) for seed, text in enumerate(real)]
        difference = model.score(false).perplexity, model.score(real).perplexity
        assert auc(*difference) >= 0.99, (number, name)
