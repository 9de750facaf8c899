"""Selection: labels decide, in order and with a reason; of copies one that passes stays, whatever the shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import selecting

from chatloom.corpus.columns import ColumnWriter
from chatloom.corpus.record import Document, write_documents
from chatloom.corpus.selection.choice import Case, Judge, SelectionSettings
from chatloom.corpus.selection.tasks import write_verdicts
from chatloom.corpus.settings import LanguageSettings, RuleSettings
from chatloom.errors import ChatloomError

TYPES = {
    "language": pa.string(),
    "quality": pa.float64(),
    "cluster": pa.string(),
    "similarity": pa.float64(),
    "spans": pa.list_(pa.int64()),
}


def document(name: str, text: str = "some text", **labels: Any) -> Document:
    return Document(name, text, "web", labels={**dict.fromkeys(TYPES), "language": "en", **labels})


def select(
    folder: Path, shards: Sequence[Sequence[Document]], settings: SelectionSettings
) -> tuple[dict[str, Document], dict[str, str], dict[str, int]]:
    """Documents that stay by id, reasons of those that go, and the counts."""
    made = selecting.select(folder, shards, settings, TYPES)
    return made.kept, made.gone, made.counts


def test_every_document_stays_or_goes_with_its_reason_and_is_counted_once(tmp_path: Path) -> None:
    documents = [document("a"), document("b", language="fr"), document("c", quality=0.1), document("d", quality=0.9)]
    settings = SelectionSettings(language=LanguageSettings(keep=("en",)), keep="quality is None or quality > 0.5")
    kept, gone, counts = select(tmp_path, [documents[:2], documents[2:]], settings)
    assert list(kept) == ["a", "d"]
    assert gone == {"b": "language/other_language", "c": "keep/quality is None or quality > 0.5"}
    assert sum(n for key, n in counts.items() if key.endswith("|documents")) == 4
    assert kept["d"].labels["quality"] == 0.9
    assert kept["d"].labels["weight"] == 1.0


def test_of_copies_the_first_that_passes_everything_else_stays(tmp_path: Path) -> None:
    copies = [document(n, cluster="a", similarity=0.9, quality=q) for n, q in (("a", 0.1), ("b", 0.6), ("c", 0.8))]
    kept, gone, _ = select(
        tmp_path, [copies[:1], copies[1:], [document("x")]], SelectionSettings(keep="default(quality, 1) > 0.5")
    )
    assert list(kept) == ["b", "x"]
    assert gone["c"] == "copies/duplicate"


def test_the_preferred_copy_stays_and_all_do_when_asked(tmp_path: Path) -> None:
    copies = [document(n, cluster="a", quality=q) for n, q in (("a", 0.1), ("b", 0.6), ("c", 0.8), ("d", 0.8))]
    kept, _, _ = select(tmp_path / "1", [copies], SelectionSettings(prefer="quality"))
    assert list(kept) == ["c"]
    kept, _, _ = select(tmp_path / "2", [copies], SelectionSettings(copies="all"))
    assert list(kept) == ["a", "b", "c", "d"]


def test_the_result_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    documents = [document(f"d{i}", cluster=f"d{i % 3}" if i % 2 else None, quality=i / 20) for i in range(20)]
    settings = SelectionSettings(keep="quality > 0.2", prefer="quality")
    one, gone_one, counts_one = select(tmp_path / "1", [documents], settings)
    many, gone_many, counts_many = select(tmp_path / "2", [documents[:3], documents[3:4], documents[4:]], settings)
    assert (one, gone_one, counts_one) == (many, gone_many, counts_many)
    assert one
    assert gone_one


def test_cases_give_languages_and_sources_their_own_conditions_and_weights(tmp_path: Path) -> None:
    documents = [document("e", quality=0.3), document("z", language="zh", quality=0.3), document("w", quality=None)]
    settings = SelectionSettings(
        keep="default(quality, 1) > 0.5",
        cases=(Case(when="language == 'zh'", keep="quality > 0.2", weight="quality * 10"),),
    )
    kept, gone, _ = select(tmp_path, [documents], settings)
    assert {name: d.labels["weight"] for name, d in kept.items()} == {"z": 3.0, "w": 1.0}
    assert list(gone) == ["e"]


def test_spans_are_cut_and_what_is_left_too_short_goes(tmp_path: Path) -> None:
    documents = [document("a", "keep this. CUT", spans=[10, 14]), document("b", "CUT ALL", spans=[0, 7])]
    kept, gone, _ = select(tmp_path, [documents], SelectionSettings(cut=("spans",), min_characters=3))
    assert kept["a"].text == "keep this."
    assert kept["a"].labels["n_characters"] == 10
    assert gone == {"b": "edits/too_short"}


def test_a_weight_of_nothing_is_a_reason_to_go(tmp_path: Path) -> None:
    _, gone, _ = select(
        tmp_path, [[document("a", quality=0.0), document("b", quality=2.0)]], SelectionSettings(weight="quality")
    )
    assert gone == {"a": "keep/weight"}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"keep": "qualty > 1"}, "did you mean `quality`"),
        ({"cut": ("nothing",)}, "no label `nothing`"),
        ({"redact": {"email": "<email>"}}, "add the labeller `personal_data"),
        ({"rules": RuleSettings(preset="web")}, "add the labeller `rules"),
    ],
)
def test_what_no_label_can_answer_is_refused_before_any_work(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ChatloomError, match=match):
        Judge(SelectionSettings(**settings), TYPES)


def test_column_files_of_other_documents_are_refused(tmp_path: Path) -> None:
    write_documents(tmp_path / "0.parquet", [Document("a", "x"), Document("b", "y")], {})
    for name, ids in (("other", "ac"), ("short", "a"), ("long", "abc")):
        with ColumnWriter(tmp_path / name / "0.parquet", {"n": pa.int64()}) as writer:
            writer.add([Document(i, "") for i in ids], [{"n": 1}] * len(ids))
        task = {"shard": str(tmp_path / "0.parquet"), "columns": [str(tmp_path / name / "0.parquet")]}
        out = tmp_path / f"{name}-out"
        out.mkdir()
        with pytest.raises(ChatloomError, match=r"does not fit|more rows"):
            write_verdicts(
                {**task, "settings": SelectionSettings().everything(), "parts": 1, "kinds": {}, "seed": 0}, out
            )
