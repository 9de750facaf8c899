"""Replies become documents: the same whatever the blocks, each with its prompt, and examples of every outcome."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from synthetic_help import answer

from chatloom.corpus.engine.local import InProcess
from chatloom.corpus.record import Document, read_documents, read_dropped
from chatloom.corpus.synthetic import making, output
from chatloom.corpus.synthetic.asking import Asking, Local, aside
from chatloom.corpus.synthetic.examples import examples
from chatloom.corpus.synthetic.prompts import Cluster, Prompt, Seed
from chatloom.corpus.synthetic.settings import AskSettings, FilterSettings
from chatloom.corpus.synthetic.templates import read_templates
from chatloom.endpoints import EndpointSettings

CLUSTERS = [
    Cluster("en-000", "en", 90, ("yeast", "oven", "dough", "flour"), (Seed("d1", "Bread is old."),)),
    Cluster("zh-000", "zh", 60, ("土壤", "水稻", "肥料", "种子"), (Seed("d2", "水稻需要很多水。"),)),
]
ASK = AskSettings(prompts=40, samples=2, max_tokens=50)


def prompts(folder: Path) -> list[Prompt]:
    folder.mkdir()
    making.make_prompts("test", folder, CLUSTERS, read_templates(), ASK, 3)
    return list(making.prompts_of(folder))


def written(folder: Path, size: int) -> dict[str, int]:
    """Documents of two replies to each prompt: one good, one that is good, refused or the same as others."""
    found = prompts(folder)
    with output.ReplyWriter(folder / output.REPLIES, size) as writer:
        for prompt in found:
            refused = "抱歉，我不能。" if prompt.language == "zh" else "I'm sorry, but I cannot."
            other = (answer(prompt.text, 2), refused, answer(prompt.terms[0] if prompt.terms else "oven", 5))
            writer.add(prompt, 0, answer(prompt.text, 1) + "\n", "stop")
            writer.add(prompt, 1, other[prompt.number % 3], "stop")
        blocks = writer.files
    return making.make_documents("test", folder, blocks, FilterSettings(), read_templates(), "me", InProcess())


def documents(folder: Path) -> list[Document]:
    return [document for file in sorted((folder / "shards").glob("*")) for document in read_documents(file)]


def test_prompts_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = prompts(tmp_path / "a")
    assert [prompt.number for prompt in found] == list(range(40))
    assert {prompt.seeds for prompt in found} == {(), CLUSTERS[0].seeds, CLUSTERS[1].seeds}
    assert found == prompts(tmp_path / "b")


def test_documents_do_not_depend_on_the_blocks_of_replies(tmp_path: Path) -> None:
    counts = [written(tmp_path / str(size), size) for size in (1000, 7)]
    assert counts[0] == counts[1]
    assert len(list((tmp_path / "7" / "shards").glob("*"))) > 5
    one, two = documents(tmp_path / "1000"), documents(tmp_path / "7")
    assert one == two
    for document in one:
        assert document.text == document.text.strip()
        assert document.id.startswith(f"synthetic/{document.metadata['prompt']:08d}/{document.metadata['sample']}/")


def test_blocks_of_a_run_that_was_cut_off_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    for n in (9, 3):
        with output.ReplyWriter(tmp_path / "replies", 2) as writer:
            for number in range(n):
                writer.add(Prompt(number, "?", "story", "en", "en-000"), 0, "text", "stop")
    assert [file.name for file in sorted((tmp_path / "replies").glob("*"))] == ["00000.parquet", "00001.parquet"]
    assert sum(pq.read_metadata(file).num_rows for file in writer.files) == 3


def test_examples_show_every_outcome_with_its_prompt(tmp_path: Path) -> None:
    written(tmp_path / "a", 1000)
    shown = examples(tmp_path / "a", 0, each=3)
    reasons = Counter(row.reason for file in (tmp_path / "a" / "dropped").glob("*") for row in read_dropped(file))
    assert {"refusal", "exact_copy"} <= set(reasons)
    assert Counter(row["outcome"] for row in shown) == {"kept": 3, **{name: min(n, 3) for name, n in reasons.items()}}
    assert shown[0]["outcome"] == "kept"
    texts = {prompt.number: prompt.text for prompt in making.prompts_of(tmp_path / "a")}
    assert all(row["prompt"] == texts[int(row["id"].split("/")[1])] for row in shown)
    assert examples(tmp_path / "a", 0, each=3) == shown != examples(tmp_path / "a", 1, each=3)


def test_another_generator_makes_another_id(tmp_path: Path) -> None:
    row = {"number": 7, "sample": 1, "hash": "00ff", "cluster": "c", "template": "t", "language": "en", "reply": "x",
           "terms": [], "seeds": []}  # fmt: skip
    ids = [output._document(row, "en", 1.0, generator).id for generator in ("me", "you", "me")]
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize(
    ("who", "path"),
    [
        (EndpointSettings(address="http://localhost/v1", model="m"), "chat/completions"),
        (EndpointSettings(address="http://localhost/v1", model="m", api="completions"), "completions"),
        (Local("00ff", True), "chat/completions"),
        (Local("00ff", False), "completions"),
    ],
)
def test_requests_are_those_that_who_answers_understands(
    who: EndpointSettings | Local, path: str, tmp_path: Path
) -> None:
    found = prompts(tmp_path / "a")
    made = list(Asking(tmp_path / "a", ASK, 3, who).requests())
    assert len(made) == len({request.key for request in made}) == 80
    assert {request.path for request in made} == {path}
    for request, prompt in zip(made[::2], found):
        assert prompt.text in (request.prompt, *(text for _, text in request.messages))
        assert (request.max_tokens, request.temperature, request.sample) == (50, 1.0, 0)
    more = ASK.model_copy(update={"prompts": 60})
    making.make_prompts("test", tmp_path / "a", CLUSTERS, read_templates(), more, 3)
    assert [request.key for request in Asking(tmp_path / "a", more, 3, who).requests()][:80] == [r.key for r in made]
    if isinstance(who, EndpointSettings):
        silent = Asking(tmp_path / "a", ASK.model_copy(update={"send_seed": False}), 3, who).requests()
        assert {request.seed for request in silent} == {None}


def test_a_folder_that_is_set_aside_is_an_earlier_one() -> None:
    assert aside(Path("runs/x/written.partial")) == Path("runs/x/written@1")
