"""Seeds and clusters shard by shard: what is held out is not seen, and neither shards nor workers change anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_help import TOPICS, seed_documents, seeds_artifact

from chatloom.corpus.engine.local import InProcess
from chatloom.corpus.record import Document, document_files, write_documents
from chatloom.corpus.synthetic import making
from chatloom.corpus.synthetic.model import ClusterModel
from chatloom.corpus.synthetic.prompts import Cluster
from chatloom.corpus.synthetic.seeds import Lowest
from chatloom.corpus.synthetic.settings import ClusterSettings
from chatloom.errors import ChatloomError

SETTINGS = {"count": 3, "columns": 8, "passage_words": 40, "fit_documents": 60, "seeds": 7}


def clusters(path: Path, shards: list[Path], embeddings: Path | None = None, **changes: Any) -> Any:
    path.mkdir()
    settings = ClusterSettings.parse({**SETTINGS, **changes})
    source = making.SeedShards([(shard, ()) for shard in shards], embeddings)
    return making.make_clusters("test", path, source, settings, ["en", "zh"], 0, InProcess())


def shards_of(folder: Path, documents: list[Document], labels: dict[str, Any], size: int = 1000) -> list[Path]:
    files = []
    for number, first in enumerate(range(0, len(documents), size)):
        files.append(folder / f"{number:05d}.parquet")
        write_documents(files[-1], documents[first : first + size], labels)
    return files


def assigned(path: Path) -> dict[str, str | None]:
    rows = [row for file in sorted((path / "clusters").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return {row["id"]: row["cluster"] for row in rows}


def test_topics_become_clusters_of_their_language_with_terms_and_passages(tmp_path: Path) -> None:
    made = seeds_artifact(tmp_path / "seeds")
    found, counts = clusters(tmp_path / "made", document_files(made.path))
    assert counts == {
        "held_out": 15, "seeds": 135, "cluster:en-000": 27, "cluster:en-001": 27, "cluster:en-002": 27,
        "cluster:zh-000": counts["cluster:zh-000"], "cluster:zh-001": counts["cluster:zh-001"],
        "cluster:zh-002": counts["cluster:zh-002"],
    }  # fmt: skip
    texts = {document.id: document.text for _, document in seed_documents()}
    for cluster in found:
        assert cluster.n_documents == counts[f"cluster:{cluster.name}"]
        assert len(cluster.seeds) == 7
        for seed in cluster.seeds:
            assert seed.passage
            assert seed.passage in texts[seed.document]
    topics = {
        topic: {name for name, c in assigned(tmp_path / "made").items() if name.startswith(topic)} for topic in TOPICS
    }
    names = [{assigned(tmp_path / "made")[name] for name in own} for own in topics.values()]
    assert sorted(map(len, names)) == [1, 1, 1]
    told = json.loads((tmp_path / "made" / "clusters.json").read_text(encoding="utf-8"))
    assert {row["name"]: row["documents"] for row in told} == {c.name: c.n_documents for c in found}


def test_nothing_of_the_held_out_side_is_seen(tmp_path: Path) -> None:
    made = seeds_artifact(tmp_path / "seeds")
    found, _ = clusters(tmp_path / "made", document_files(made.path), terms=50)
    held_out = {document.id for _, document in seed_documents() if document.labels["split"] != "train"}
    assert held_out
    assert not held_out & set(assigned(tmp_path / "made"))
    shown = [text for cluster in found for text in (*cluster.terms, *(seed.passage for seed in cluster.seeds))]
    assert not [text for text in shown if "zeppelin" in text or "飞艇" in text]


def test_neither_the_number_nor_the_order_of_shards_changes_the_clusters(tmp_path: Path) -> None:
    documents = [document for _, document in seed_documents()]
    labels = {"split": pa.string(), "language": pa.string()}
    made: list[list[Cluster]] = []
    for number, (order, size) in enumerate(((documents, 1000), (documents[::-1], 20), (documents, 7))):
        (tmp_path / f"in{number}").mkdir()
        shards = shards_of(tmp_path / f"in{number}", order, labels, size)
        made.append(clusters(tmp_path / f"out{number}", shards)[0])
    assert made[0] == made[1] == made[2]


def test_languages_that_nobody_writes_and_documents_without_a_label_are_counted(tmp_path: Path) -> None:
    documents = [Document(document.id, document.text) for _, document in seed_documents()]
    documents += [
        Document(f"fr{i}", f"Il y avait une fois {i} petits chats dans une maison au bord de la mer.") for i in range(9)
    ]
    _, counts = clusters(tmp_path / "made", shards_of(tmp_path, documents, {}))
    assert (counts["seeds"], counts["other_language"]) == (150, 9)  # the language is found where no label tells it


def test_small_clusters_are_not_written_about(tmp_path: Path) -> None:
    made = seeds_artifact(tmp_path / "seeds")
    found, counts = clusters(tmp_path / "made", document_files(made.path), min_documents=28)
    sizes = {name: n for name, n in counts.items() if name.startswith("cluster:")}
    assert {f"cluster:{cluster.name}" for cluster in found} == {name for name, n in sizes.items() if n >= 28}


def test_no_seed_is_an_error_that_counts_why(tmp_path: Path) -> None:
    documents = [Document(f"d{i}", "Texte.", labels={"language": "fr", "split": "train"}) for i in range(3)]
    labels = {"split": pa.string(), "language": pa.string()}
    with pytest.raises(ChatloomError, match=r"no document can be a seed: 3 other language; .*en, zh"):
        clusters(tmp_path / "made", shards_of(tmp_path, documents, labels))


def labelled(value: Any, kind: Any) -> tuple[list[Document], dict[str, Any]]:
    found = [
        Document(d.id, d.text, labels={**d.labels, "topic": value(topic, number)})
        for number, (topic, d) in enumerate(seed_documents())
    ]
    return found, {"split": pa.string(), "language": pa.string(), "topic": kind}


def test_a_label_with_names_gives_the_clusters(tmp_path: Path) -> None:
    documents, labels = labelled(lambda topic, number: topic, pa.string())
    found, counts = clusters(tmp_path / "made", shards_of(tmp_path, documents, labels), vectors="label", label="topic")
    assert {cluster.name for cluster in found} == {"en-baking", "en-sailing", "en-astronomy", "zh-医学", "zh-农业"}
    assert {cluster.n_documents for cluster in found} == {27}
    baking = next(cluster for cluster in found if cluster.name == "en-baking")
    assert set(baking.terms[:6]) <= set(TOPICS["baking"].split())
    assert counts["seeds"] == 135


def test_a_label_with_numbers_is_clustered(tmp_path: Path) -> None:
    places = {
        "baking": [1.0, 0.1],
        "sailing": [0.1, 1.0],
        "astronomy": [-1.0, 0.0],
        "医学": [1.0, 0.0],
        "农业": [0.0, 1.0],
    }
    documents, labels = labelled(lambda topic, number: places[topic] if number % 5 else None, pa.list_(pa.float32()))
    shards = shards_of(tmp_path, documents, labels)
    found, counts = clusters(tmp_path / "made", shards, vectors="label", label="topic")
    assert counts["without_vector"] == sum(
        d.labels["topic"] is None and d.labels["split"] == "train" for d in documents
    )
    by_topic = {(name.split("/")[0], cluster) for name, cluster in assigned(tmp_path / "made").items()}
    assert len([pair for pair in by_topic if pair[0] in TOPICS]) == 3
    assert len({cluster for topic, cluster in by_topic if topic in TOPICS}) == 3
    assert found


def test_vectors_of_a_file_are_clustered_and_must_be_as_many_as_the_documents(tmp_path: Path) -> None:
    documents = [document for _, document in seed_documents()]
    shards = shards_of(tmp_path, documents, {"split": pa.string(), "language": pa.string()}, size=40)
    topics = [topic for topic, _ in seed_documents()]
    places = {topic: np.eye(5, dtype=np.float32)[number] for number, topic in enumerate(dict.fromkeys(topics))}
    rows = np.array([places[topic] for topic in topics])
    file = tmp_path / "rows.npy"
    np.save(file, rows)
    clusters(tmp_path / "made", shards, file, vectors="file")
    by_topic = {(name.split("/")[0], cluster) for name, cluster in assigned(tmp_path / "made").items()}
    assert len(by_topic) == 5
    assert len({cluster for _, cluster in by_topic}) == 5
    np.save(file, rows[1:])
    with pytest.raises(ChatloomError, match=r"an array \[149, 5\] of float32; expected \[150, columns\]"):
        clusters(tmp_path / "again", shards, file, vectors="file")
    file.write_text("1, 2, 3", encoding="utf-8")
    with pytest.raises(ChatloomError, match="not a NumPy array of numbers"):
        clusters(tmp_path / "text", shards, file, vectors="file")


@pytest.mark.parametrize(
    ("value", "kind", "label", "told"),
    [
        (lambda topic, number: topic, pa.string(), "topics", "has no label `topics`; it has language, split, topic"),
        (
            lambda topic, number: [1.0] * (2 + number % 2),
            pa.list_(pa.float32()),
            "topic",
            "vectors of different lengths: 2, 3",
        ),
    ],
)
def test_labels_that_are_not_what_they_should_be_are_named(
    value: Any, kind: Any, label: str, told: str, tmp_path: Path
) -> None:
    documents, labels = labelled(value, kind)
    with pytest.raises(ChatloomError, match=told):
        clusters(tmp_path / "made", shards_of(tmp_path, documents, labels), vectors="label", label=label)


def test_a_model_that_is_opened_again_tells_the_same_clusters(tmp_path: Path) -> None:
    rows = {
        language: [
            {"id": d.id, "text": d.text, "vector": None, "cluster": None}
            for _, d in seed_documents()
            if d.labels["language"] == language
        ]
        for language in ("en", "zh")
    }
    model = ClusterModel.fit(rows, ClusterSettings.parse(SETTINGS), 0)
    model.save(tmp_path / "model")
    opened = ClusterModel.load(tmp_path / "model")
    assert opened.topics == model.topics
    for language, found in rows.items():
        texts = [row["text"] for row in found]
        nothing = [None] * len(texts)
        assert list(opened.nearest(language, texts, nothing)) == list(model.nearest(language, texts, nothing))
    assert list(opened.nearest("fr", ["un texte"], [None])) == [(None, None)]
    assert list(opened.nearest("en", ["of no known word"], [None])) == [(None, None)]


def test_the_lowest_are_the_lowest_in_any_order() -> None:
    for order in (range(100), range(99, -1, -1)):
        lowest = Lowest(3)
        for number in order:
            if lowest.wants("a", number % 50, str(number)):
                lowest.add("a", number % 50, str(number), number)
        assert dict(lowest.groups()) == {"a": [0, 50, 1]}
