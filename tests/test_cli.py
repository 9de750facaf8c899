"""Promises of the command line: results on standard output, errors as a sentence, exit codes, complete help."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
import typer
import yaml

from chatloom import __version__, artifact, recipe, stages
from chatloom.artifact import Draft, Identity
from chatloom.cli import app, frame, main
from chatloom.cli import stages as stage_commands
from chatloom.cli.recipes import _show_table
from chatloom.cli.stages import setting_rows, type_text
from chatloom.corpus.record import Document, Dropped, DroppedWriter, write_documents
from chatloom.dialogue.record import Conversation, Message, Preference
from chatloom.dialogue.storage import write_conversations, write_preferences
from chatloom.errors import ChatloomError
from chatloom.tokens.vocabulary import Vocabulary

REAL_KINDS = dict(stages.MODULES)
FAKES = Path(__file__).with_name("fake_stages.py")
RECIPE: dict[str, Any] = {
    "seed": 5,
    "stages": {
        "pages": {"stage": "write", "text": "x"},
        "words": {"stage": "join", "documents": {"from": "pages"}},
        "base": {"stage": "train", "vocabulary": {"from": "words"}},
    },
}


@pytest.fixture(scope="module")
def fakes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_stages", FAKES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_stages"] = module  # where pydantic looks up the names in annotations
    spec.loader.exec_module(module)
    return module


class Shell:
    """Runs commands in an empty folder; keeps exit code, standard output and standard error of the last one."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd
        self.code, self.out, self.err = 0, "", ""

    def __call__(self, *arguments: str) -> int:
        self.capfd.readouterr()
        self.code = main(list(arguments))
        self.out, self.err = self.capfd.readouterr()
        return self.code


@pytest.fixture
def shell(
    fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    # Commands of stages are made when the program starts, from the kinds there are; add those of the fake ones.
    monkeypatch.setattr(app, "registered_commands", list(app.registered_commands))
    monkeypatch.setattr(stages, "MODULES", fakes.table())
    stage_commands.register(app)
    monkeypatch.setattr(stages, "MODULES", {**REAL_KINDS, **fakes.table()})
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    yield Shell(capfd)
    frame.DEBUG.set(False)


def test_the_version_is_printed(shell: Shell) -> None:
    assert shell("--version") == 0
    assert shell.out == f"chatloom {__version__}\n"


def test_help_names_every_command_and_every_stage(shell: Shell) -> None:
    assert shell("--help") == 0
    for name in ("demo", "run", "plan", "chat", "inspect", "doctor", *stages.kinds()):
        assert f" {name} " in shell.out


def test_help_does_not_load_torch() -> None:
    code = "import sys\nfrom chatloom.cli import main\nmain(['--help'])\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", list(REAL_KINDS))
def test_the_help_of_a_stage_lists_every_setting_with_type_default_and_meaning(shell: Shell, kind: str) -> None:
    assert shell(kind, "--help") == 0
    text = " ".join(shell.out.split())
    for name, kind_of_value, default, meaning in setting_rows(stages.find(kind).settings):
        assert name in text
        assert kind_of_value, f"{kind}.{name} has no type"
        assert default, f"{kind}.{name} has no default and is not called required"
        assert meaning, f"{kind}.{name} has no description"
    for name in stages.find(kind).inputs:
        assert name in text


@pytest.mark.parametrize("kind", list(REAL_KINDS))
def test_no_setting_is_broken_in_two_on_a_terminal_of_80_columns(
    shell: Shell, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert shell(kind, "--help") == 0
    first = {line.split()[0] for line in shell.out.splitlines() if line.strip()}
    assert {row[0] for row in setting_rows(stages.find(kind).settings)} <= first


@pytest.mark.parametrize("kind", list(REAL_KINDS))
def test_the_defaults_shown_are_those_that_a_stage_runs_with(kind: str) -> None:
    settings = stages.find(kind).settings
    plain = settings().everything()
    for name, _, shown, _ in setting_rows(settings):
        path = name.rstrip("*").split(".")
        value: Any = plain
        for depth, part in enumerate(path):
            if value is None:  # a group that is null by default: what it would have if it were given as {}
                given: dict[str, Any] = {}
                for group in reversed(path[:depth]):
                    given = {group: given}
                value = settings.parse(given).everything()
                for group in path[:depth]:
                    value = value[group]
            value = value[part]
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert float(shown) == value, f"{kind}.{name}"


def test_every_stage_module_is_registered() -> None:
    folder = Path(stages.__file__).parent
    modules = {f"chatloom.stages.{file.stem}" for file in folder.glob("*.py") if not file.stem.startswith("_")}
    registered = {module for module, _ in REAL_KINDS.values()}
    assert modules == registered


def test_types_are_named_in_words() -> None:
    assert type_text(int | None) == "whole number or null"
    assert type_text(tuple[float, ...]) == "list of number"
    assert type_text(dict[str, bool]) == "mapping of text to true/false"


@pytest.mark.parametrize(("wrong", "right"), [("rnu", "run"), ("inspct", "inspect"), ("pretrian", "pretrain")])
def test_an_unknown_command_names_the_nearest(shell: Shell, wrong: str, right: str) -> None:
    assert shell(wrong) == 2
    assert f"'{right}'" in shell.err


def test_a_recipe_runs_and_runs_again(shell: Shell, tmp_path: Path) -> None:
    assert shell("run", "toy.yaml") == 0
    assert shell.out == "made: runs/toy/base\n"
    assert artifact.load(tmp_path / "runs/toy/base", "model", verify=True).metrics == {"steps": 3}
    assert shell("run", "toy.yaml", "--quiet") == 0
    assert shell.err == ""


def test_settings_are_overridden_and_stages_chosen_from_the_command_line(shell: Shell, tmp_path: Path) -> None:
    assert shell("run", "toy.yaml", "--out", "there", "--set", "stages.pages.text=y", "--until", "words", "-q") == 0
    assert (tmp_path / "there/words/text.txt").read_text(encoding="utf-8") == "y"
    assert not (tmp_path / "there/base").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "toy.yml"], "toy.yml: no such file, and no recipe of that name comes with chatloom"),
        (["run", "toy.yaml", "--set", "base.stpes=3"], "did you mean `steps`?"),
        (["run", "toy.yaml", "--set", "base.steps"], "expected NAME=VALUE"),
        (["run", "toy.yaml", "--set", "bsae.steps=3"], "there is no stage `bsae`; did you mean `base`?"),
        (["run", "toy.yaml", "--set", "steps=3"], "put the stage before the setting"),
        (["run", "toy.yaml", "--until", "bsae"], "has no stage `bsae`; did you mean `base`?"),
        (["run", "toy.yaml", "--start-over", "wrods"], "has no stage `wrods`; did you mean `words`?"),
        (
            ["run", "toy.yaml", "--set", "base.fail_with=chatloom"],
            "stage `base`: the weights are upside down; turn them",
        ),
        (["inspect", "nowhere"], "nowhere: no artifact here"),
        (["write"], "does not say where to write"),
        (["write", "missing.yaml"], "missing.yaml: no such file"),
        (["join", "--out", "x"], "`join` needs this input"),
    ],
)
def test_an_error_is_one_sentence_without_traceback(shell: Shell, arguments: list[str], message: str) -> None:
    assert shell(*arguments) == 1
    assert shell.err.splitlines()[-1].startswith("error: ")
    assert message in shell.err
    assert "Traceback" not in shell.err


def test_debug_shows_where_an_error_came_from(shell: Shell) -> None:
    with pytest.raises(ChatloomError):
        shell("run", "toy.yaml", "--set", "base.fail_with=chatloom", "--debug")


def test_a_plan_shows_states_and_figures_and_writes_nothing(shell: Shell, tmp_path: Path) -> None:
    assert shell("plan", "toy.yaml") == 0
    assert not (tmp_path / "runs").exists()
    row = next(line for line in shell.out.splitlines() if " base " in line)
    assert "to do" in row
    assert " 10 " in row  # parameters: exact, so without a ~
    assert " ~3 G " in row
    shell("run", "toy.yaml", "-q")
    shell("plan", "toy.yaml", "--set", "base.steps=4")
    assert "`base` is stale: settings.steps: 3 -> 4" in shell.out


def test_a_plan_that_cannot_work_exits_with_2_and_all_reasons(shell: Shell, tmp_path: Path) -> None:
    settings = ["--set", "base.steps=1000000000"]
    assert shell("plan", "toy.yaml", *settings) == 2
    assert "stage `base`: a billion steps are too many" in shell.err
    assert shell("run", "toy.yaml", *settings) == 2
    assert not (tmp_path / "runs").exists()


def test_a_stage_runs_alone_from_a_settings_file(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("page", encoding="utf-8")
    values = {"text": "t", "pages": {"path": "*.html"}, "out": "made/pages", "seed": 4}
    (tmp_path / "write.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert shell("write", "write.yaml", "--set", "text=u") == 0
    assert shell.out == "made/pages\n"
    made = artifact.load(tmp_path / "made/pages", "documents")
    assert made.file("text.txt").read_text(encoding="utf-8") == "u\npage"
    assert made.manifest["seed"] == 4
    assert shell("join", "write.yaml") == 1
    assert "`join` has no such setting or input" in shell.err
    (tmp_path / "write.yaml").write_text("stage: write\n", encoding="utf-8")
    assert shell("join", "write.yaml", "--out", "x") == 1
    assert "is for stage `write`; run chatloom write write.yaml" in shell.err


def test_a_plan_of_one_stage_alone_speaks_of_no_recipe(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    assert shell("write", "--out", "mine") == 2
    assert "or drop it with --start-over\n" in shell.err
    (tmp_path / "join.yaml").write_text("documents: {path: nowhere}", encoding="utf-8")
    assert shell("join", "join.yaml", "--out", "there") == 2
    assert "error: join.documents: nowhere: no such file or folder" in shell.err


def test_a_table_of_results_wider_than_the_terminal_is_shown_in_short(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    row = {"group": "All", "group_title": "All (9)", "reward": -0.5, "kl": 0.25, "exact": 0.75, "ended": 1.0}
    row |= {"f1": 0.8, "f1_low": 0.7, "f1_high": 0.9, "f1_gain": 0.1, "f1_gain_low": 0.05, "f1_gain_high": 0.15}
    rows = [{**row, "method": name} for name in ("sft", "ppo")]
    other = {**row, "group": "English", "group_title": "English (5)", "method": "sft"}
    tables = {"greedy": rows, "sampled": [*rows, other]}
    (tmp_path / "table.json").write_text(json.dumps(tables), encoding="utf-8")
    wide = "x" * 100
    monkeypatch.setenv("COLUMNS", "100")
    _show_table(tmp_path, wide)
    assert capfd.readouterr().out == f"{wide}\n"
    monkeypatch.setenv("COLUMNS", "80")
    _show_table(tmp_path, wide)
    shown = capfd.readouterr().out
    assert "sampled answers: All (9)" in shown
    words = ["ppo", "75.0%", "+10.0%", "[+5.0%,", "+15.0%]", "−0.50", "0.25"]
    assert [line.split() for line in shown.splitlines() if " ppo " in line] == [words]
    assert "English" not in shown
    assert "the whole table: table.txt" in shown
    assert max(map(len, shown.splitlines())) <= 80


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_shows_lineage_settings_metrics_and_files(shell: Shell) -> None:
    shell("run", "toy.yaml", "-q")
    assert shell("inspect", "runs/toy/base") == 0
    assert "model, made by stage `train`, seed 5" in shell.out
    lines = [line.strip("│├└─ ") for line in shell.out.splitlines()]
    tree = [line for line in lines if line.startswith(("vocabulary: words (vocabulary", "documents: pages (documents"))]
    assert len(tree) == 2
    assert "steps: 3" in shell.out
    assert "as recorded" in shell.out


def test_inspect_finds_a_changed_file(shell: Shell, tmp_path: Path) -> None:
    shell("run", "toy.yaml", "-q")
    file = tmp_path / "runs/toy/base/steps.txt"
    file.write_text(file.read_text(encoding="utf-8").replace("0", "9", 1), encoding="utf-8")
    assert shell("inspect", "runs/toy/base") == 1
    assert "changed or damaged since it was made: steps.txt" in shell.err


def test_inspect_shows_documents_of_all_shards_and_dropped_pages_with_the_reason(shell: Shell, tmp_path: Path) -> None:
    draft = artifact.begin(tmp_path / "corpus", Identity("selection", "selection", 1, {}, 0))
    assert isinstance(draft, Draft)
    kept = Document("p1", "kept text", "p1", labels={"language": "en", "rule_words": 9.0, "rule_digits": None})
    labels = {"language": pa.string(), "rule_words": pa.float64(), "rule_digits": pa.float64()}
    write_documents(draft.path / "shards" / "0.parquet", [kept], labels)
    write_documents(draft.path / "shards" / "1.parquet", [replace(kept, id=f"p{n}") for n in (3, 4, 5)], labels)
    (draft.path / "dropped").mkdir()
    with DroppedWriter(draft.path / "dropped" / "0.parquet") as writer:
        writer.add(Dropped("p2", "rules", "word_count", "word_count 3 is below 20", "too short"))
    draft.commit({"share": None, "steps": [{"step": "rules", "kept": 1}]})
    assert shell("inspect", "corpus", "--samples", "2", "--skip", "1") == 0
    assert [name for name in ("p1 ", "p3 ", "p4 ", "p5 ") if name in shell.out] == ["p3 ", "p4 "]
    assert shell("inspect", "corpus") == 0
    assert "steps: 1 rows of kept, step" in shell.out  # not as Python writes it
    assert "p1 (language en, rules measured: 1)\nkept text" in shell.out
    assert "p2 (dropped by rules: word_count 3 is below 20)\ntoo short" in shell.out
    assert "share: null" in shell.out


def test_a_folder_of_artifacts_is_answered_with_what_it_holds(shell: Shell, tmp_path: Path) -> None:
    shell("run", "toy.yaml", "-q")
    assert shell("inspect", "runs/toy") == 1
    assert "it holds runs/toy/base, runs/toy/pages, runs/toy/words" in shell.err
    assert shell("chat", "runs/toy/words", "-p", "hi") == 1
    assert "runs/toy/words: is an artifact of kind `vocabulary`, not a chat model" in shell.err
    assert shell("chat", "runs/toy", "-p", "hi") == 1
    assert shell.err == "error: runs/toy: holds no model (no config.json)\n"
    for name in ("config.json", "chat_template.json"):
        (tmp_path / "runs/toy/base" / name).write_text("{}", encoding="utf-8")
    shell("chat", "runs/toy", "-p", "hi")
    assert "holds no model (no config.json); it holds runs/toy/base\n" in shell.err
    for step in ("step-9", "step-10", "step-11.partial"):
        (tmp_path / "runs/toy/more.partial/checkpoints" / step).mkdir(parents=True)
    for name in ("runs/toy/more", "runs/toy/more.partial"):
        assert shell("chat", name, "-p", "hi") == 1
        assert "its newest checkpoint is runs/toy/more.partial/checkpoints/step-10\n" in shell.err


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    draft = artifact.begin(tmp_path / "data", Identity("conversations", "questions", 1, {}, 0))
    assert isinstance(draft, Draft)
    messages = [Message("user", "what is it?"), Message("assistant", "a loom"), Message("user", "织?")]
    write_conversations(draft.path / "sft.parquet", [Conversation("c1", [*messages, Message("assistant", "织")])])
    write_preferences(
        draft.path / "pairs.parquet", [Preference("p1", messages[:1], ["a loom", "a boat"], kind="wrong")]
    )
    draft.commit({})
    Vocabulary.train(["what is it? a loom, a loom"] * 9, 290, allow_smaller=True).save(tmp_path / "words")
    return tmp_path / "data"


def test_inspect_shows_dialogues_as_text_without_a_vocabulary(shell: Shell, dialogues: Path) -> None:
    assert shell("inspect", "data") == 0
    assert "user: what is it?\nassistant: a loom" in shell.out
    assert "best: a loom\nrank 2: a boat\n(wrong)" in shell.out


def test_inspect_shows_exactly_the_tokens_that_carry_loss(shell: Shell, dialogues: Path) -> None:
    assert shell("inspect", "data", "--vocabulary", "words") == 0
    vocabulary = Vocabulary.load(Path("words"))
    pieces = [vocabulary.decode([token]) for token in vocabulary.encode("a loom")]
    supervised = "·".join(f"⟦{piece}⟧" for piece in [*pieces, "<|end|>"])
    assert f"<|assistant|>·{supervised}·<|user|>" in shell.out
    assert r"⟦\xe7⟧·⟦\xbb⟧·⟦\x87⟧·⟦<|end|>⟧" in shell.out  # 织 in bytes, none of them dropped
    assert "⟦what" not in shell.out
    question = shell.out.index("<|user|>")
    assert "⟦" not in shell.out[question : shell.out.index("<|assistant|>", question)]


def test_inspect_of_a_model_shows_what_it_was_trained_on(shell: Shell, dialogues: Path, tmp_path: Path) -> None:
    parent = artifact.load(dialogues)
    draft = artifact.begin(
        tmp_path / "tuned", Identity("model", "sft", 1, {}, 0, {"conversations": parent.fingerprint})
    )
    assert isinstance(draft, Draft)
    Vocabulary.load(tmp_path / "words").save(draft.path)
    (draft.path / "config.json").write_text(json.dumps({"max_position_embeddings": 20}), encoding="utf-8")
    entry = {"name": "data", "path": "../data", "kind": "conversations", "fingerprint": parent.fingerprint}
    draft.commit({}, inputs={"conversations": [entry]}, lineage={})
    assert shell("inspect", "tuned") == 0
    assert "conversations in data/sft.parquet" in shell.out
    assert "⟦<|end|>⟧" in shell.out
    assert "preferences in" not in shell.out  # sft does not learn from them
    assert "what" not in shell.out.partition("sft.parquet")[2]  # the first turn does not fit 20 tokens: not trained on


# --- chat -------------------------------------------------------------------------------------------------------------


class Talker:
    """Answers with the roles it was sent."""

    def stream(self, messages: list[dict[str, str]], **options: Any) -> Iterator[str]:
        if messages[-1]["content"] == "too long":
            raise ChatloomError("the conversation does not fit the context")
        yield from [message["role"][0] for message in messages]
        yield f" {options['seed']}"


@pytest.fixture
def talker(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("chatloom.api")
    module.load_chat = lambda path: Talker()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chatloom.api", module)
    monkeypatch.setattr("chatloom.api", module, raising=False)


def test_chat_answers_one_prompt(shell: Shell, talker: None) -> None:
    assert shell("chat", "model", "--prompt", "hello", "--system", "be brief", "--seed", "7") == 0
    assert shell.out == "su 8\n"


def test_chat_remembers_and_forgets(shell: Shell, talker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n\ntoo long\n/clear\nthree\n/nonsense\n/quit\nnever\n"))
    assert shell("chat", "model") == 0
    assert shell.out.splitlines() == ["u 0", "uau 1", "u 0"]
    assert "does not fit the context" in shell.err
    assert "there is no command /nonsense" in shell.err


def test_a_result_that_cannot_be_written_is_an_error_and_a_closed_pipe_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(typer.Exit) as ended:
        frame.handled(full)()
    assert ended.value.exit_code == 1
    assert "error: standard output cannot be written to (No space left on device)" in capsys.readouterr().err
    reading, writing = os.pipe()
    os.close(reading)
    pipe = open(writing, "w", encoding="utf-8")  # noqa: SIM115 - closing it fails, as it should
    monkeypatch.setattr("sys.stdout", pipe)
    with pytest.raises(typer.Exit) as ended:
        frame.handled(lambda: frame.console().print("a result"))()
    assert ended.value.exit_code == 0
    with pytest.raises(BrokenPipeError):
        pipe.close()


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(1_500_000, "", "1.5 M"), (2.1e9, "bytes", "2.1 GB"), (3.2e15, "FLOP", "3.2 PFLOP"), (250, "s", "4m 10s"),
     (0, "bytes", "0 B"), (3e9, "tokens", "3 B"), (10, "", "10"), (0.25, "", "0.25")],
)  # fmt: skip
def test_amounts_are_readable(value: float, unit: str, text: str) -> None:
    assert frame.amount(value, unit) == text


def test_the_command_to_go_on_does_not_start_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["x", "run", "toy.yaml", "--start-over", "base", "--out", "a b", "--start-over=words"]
    )
    assert frame._this_command() == "chatloom run toy.yaml --out 'a b'"
    monkeypatch.setattr("sys.argv", ["x", "sft", "--start-over", "sft.yaml"])
    assert frame._this_command() == "chatloom sft sft.yaml"


def test_packaged_recipes_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in recipe.packaged().items():
        assert recipe.read(name).nodes, name
        assert path.name == f"{name}.yaml"
