"""Labellers are found by name or as module:name, and a mistake says what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling_help import check, labels

from chatloom.corpus.labellers import LABELLERS, load_labeller
from chatloom.corpus.labellers.usual import USUAL
from chatloom.corpus.labelling import SPANS, Labeller, NoSettings, meanings
from chatloom.corpus.record import Document
from chatloom.corpus.selection.expressions import Expression
from chatloom.errors import ChatloomError

OWN = '''
from __future__ import annotations
from collections.abc import Sequence
from typing import Any
import pyarrow as pa
from pydantic import Field
from chatloom.corpus.labelling import Labeller
from chatloom.corpus.record import Document
from chatloom.settings import Settings

def exclamations(document: Document) -> float:
    """Exclamation marks a character."""
    return document.text.count("!") / max(len(document.text), 1)

def shout(document: Document) -> str | None:
    return document.text if document.text.isupper() else None

def loud(document: Document) -> list[int]:
    return [0, len(document.text)]

def untyped(document):
    return 1

def mapped(document: Document) -> dict[str, int]:
    return {}

class LettersSettings(Settings):
    letter: str = Field("e", description="which")

class Letters(Labeller[LettersSettings]):
    """How often a letter occurs."""
    name = "letters"
    version = 3
    columns = {"letters": pa.int64()}
    Settings = LettersSettings
    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        return [{"letters": document.text.count(self.settings.letter)} for document in documents]

class Nameless(Labeller[LettersSettings]):
    def label(self, documents):
        return []

number = 3
'''
PURE = [name for name in LABELLERS if name not in ("perplexity", "quality", "sensitive", "contamination")]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working folder."""
    name = f"own_labels_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


@pytest.mark.parametrize("name", LABELLERS)
def test_every_labeller_names_its_source_and_its_columns(name: str) -> None:
    kind = load_labeller(name)
    assert issubclass(kind, Labeller)
    assert kind.__doc__
    sources = ("Source", "et al.", "arXiv", "ISO")
    assert name == "length" or any(source in kind.__doc__ for source in sources)
    assert kind.version >= 1
    for field in kind.Settings.model_fields.values():
        assert field.description


@pytest.mark.parametrize("name", [name for name in LABELLERS if name not in ("length", "rules", "sensitive")])
def test_the_docstring_says_of_every_column_what_it_is(name: str) -> None:
    kind = load_labeller(name)
    made = kind(kind.Settings()) if name in PURE else kind.__new__(kind)
    found = meanings(made)
    assert set(found) == set(made.columns)
    assert all(2 < len(text) < 250 and f"{column}:" not in text for text in found.values() for column in found)


def test_meanings_end_with_their_sentence() -> None:
    class Made(Labeller[NoSettings]):
        """First line; made: no.

        made, made_share: what e.g. 1.5 means; made_kinds: why (1 a; 2 b). `cut` takes made.
        """

        columns = dict.fromkeys(("made", "made_share", "made_kinds"), SPANS)

        def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
            return []

    found = meanings(Made.__new__(Made))
    assert found["made_share"] == "what e.g. 1.5 means"
    assert found["made_kinds"] == "why (1 a; 2 b)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(d) -> int\n", "SyntaxError"),
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        ("1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_an_own_module_with_a_mistake_is_named_and_never_ends_the_command(own: str, text: str, reason: str) -> None:
    Path(f"{own}_{reason}.py").write_text(text, encoding="utf-8")
    with pytest.raises(ChatloomError, match=f"labeller `{own}_{reason}:f`: cannot import .*{reason}"):
        load_labeller(f"{own}_{reason}:f")


def test_columns_of_two_labellers_do_not_collide() -> None:
    seen: dict[str, str] = {}
    for name in PURE:
        kind = load_labeller(name)
        for column in kind(kind.Settings()).columns:
            assert column not in seen, (column, name, seen.get(column))
            seen[column] = name


def test_an_own_function_makes_a_column_of_its_name_and_type(own: str) -> None:
    assert labels(f"{own}:exclamations", "a!b!") == {"exclamations": 0.5}
    assert labels(f"{own}:shout", "LOUD") == {"shout": "LOUD"}
    assert labels(f"{own}:shout", "soft") == {"shout": None}
    assert load_labeller(f"{own}:shout").columns == {"shout": pa.string()}
    assert load_labeller(f"{own}:loud").columns == {"loud": SPANS}


def test_an_own_class_has_settings_and_its_file_is_part_of_its_fingerprint(own: str) -> None:
    kind = load_labeller(f"{own}:Letters")
    assert kind.__qualname__ == "Letters"
    assert (kind.version, kind.name) == (3, "letters")
    made = kind(kind.Settings.parse({"letter": "x"}))
    assert made.label([Document("d", "xyx")]) == [{"letters": 2}]
    assert [Path(file).name for file in made.files()] == [f"{own}.py"]
    function = load_labeller(f"{own}:exclamations")
    assert [Path(file).name for file in function(function.Settings()).files()] == [f"{own}.py"]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("langauge", "did you mean `language`"),
        ("no_such_module_anywhere:f", "cannot import no_such_module_anywhere"),
        ("{own}:missing", "has no `missing`"),
        ("{own}:number", "`number` is a int"),
        ("{own}:untyped", "say with `-> float`"),
        ("{own}:mapped", "say with `-> float`"),
        ("{own}:Nameless", "lacks name, columns, Settings"),
    ],
)
def test_a_wrong_name_says_what_to_do(own: str, use: str, message: str) -> None:
    with pytest.raises(ChatloomError, match=message):
        load_labeller(use.format(own=own))


def test_asking_for_one_labeller_imports_neither_the_others_nor_torch() -> None:
    code = (
        "import sys; from chatloom.corpus.labellers import load_labeller; load_labeller('length');"
        "assert not {'torch', 'sentencex', 'tldextract', 'fasttext'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", USUAL)
def test_usual_limits_name_labels_that_there_are(name: str) -> None:
    usual = USUAL[name]
    columns: dict[str, pa.DataType] = {}
    for use in usual.labellers:
        kind = load_labeller(use)
        columns |= kind(kind.Settings()).columns
    Expression.parse(usual.keep, columns)
    assert all(columns[label] == SPANS for label in usual.cut)
    assert usual.source


def test_the_page_names_every_label_and_every_usual_limit() -> None:
    docs = Path(__file__).parents[3] / "docs"
    page = (docs / "labellers.md").read_text(encoding="utf-8")
    rules = (docs / "corpus.md").read_text(encoding="utf-8")
    for name in PURE:
        kind = load_labeller(name)
        for column in kind(kind.Settings()).columns:
            assert f"`{column.removeprefix('rule_')}`" in (rules if name == "rules" else page), column
    for usual in USUAL.values():
        assert usual.keep in page


STRANGE = [
    "",
    " ",
    "\n",
    "\x00",
    "\ud800",
    "\ufeff",
    "a" * 3000,
    "的" * 3000,
    "\n" * 500,
    "%\\{}[]",
    "@" * 50,
    "1" * 200,
    "é\u0301\u3000",
]


@pytest.mark.parametrize("name", PURE)
def test_strange_texts_have_labels_of_the_declared_types(name: str) -> None:
    kind = load_labeller(name)
    own = kind(kind.Settings())
    for text in STRANGE:
        for language in ("en", "zh", "und"):
            row = own.label([Document("d", text, url="http://[::1", labels={"language": language})])[0]
            check(own, row, text)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=80), min_size=1, max_size=5))
def test_labels_do_not_depend_on_the_batch_and_are_the_same_twice(texts: list[str]) -> None:
    documents = [Document(str(n), text, labels={"language": "en"}) for n, text in enumerate(texts)]
    for name in PURE:
        kind = load_labeller(name)
        together = kind(kind.Settings()).label(documents)
        assert together == [kind(kind.Settings()).label([document])[0] for document in documents], name
