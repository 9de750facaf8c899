"""Seed documents about known topics in English and Chinese, and a stand-in for a model that writes about them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from toys import make_artifact

from chatloom.artifact import Artifact
from chatloom.corpus.record import SHARDS, Document, document_files, read_documents, write_documents

TOPICS = {
    "baking": "flour yeast dough oven crust butter sugar knead loaf batter recipe bakery",
    "sailing": "harbour mast rudder anchor sail tide captain deck compass breeze voyage keel",
    "astronomy": "planet orbit telescope comet galaxy nebula eclipse asteroid lunar stellar observatory spectrum",
}
CHINESE_TOPICS = {
    "医学": "医生 病人 药物 手术 血压 症状 治疗 护士 诊断 疫苗",
    "农业": "水稻 土壤 灌溉 种子 肥料 收割 农民 小麦 果园 害虫",
}
OTHERS = ("window", "river", "teacher", "garden", "letter", "winter", "street", "music", "paper", "mirror", "candle")
CHINESE_OTHERS = ("窗户", "河流", "花园", "信件", "冬天", "街道", "音乐", "村庄", "镜子", "瓶子", "蜡烛")
VERBS = ("found", "carried", "painted", "forgot", "described", "lifted", "admired", "repaired", "sold", "noticed")
CHINESE_VERBS = ("找到", "搬走", "画出", "忘记", "描写", "举起", "喜欢", "修好", "卖掉", "看见", "谈起", "想念")
WHO = ("the old captain", "a young girl", "my neighbour", "every visitor", "their uncle", "the quiet boy", "that woman")
CHINESE_WHO = ("老船长", "小女孩", "我的邻居", "每个客人", "他们的叔叔", "那个男孩", "有位妇女", "大家")
WHEN = ("before breakfast", "on a cold evening", "after the long war", "with great care", "in their own house", "again")
CHINESE_WHEN = ("清早", "在寒冷的晚上", "战争以后", "很小心地", "在自己家里", "后来又", "前年", "没有多久就")

LIKE = ("old", "new", "small", "heavy", "yellow", "broken", "famous", "quiet", "strange", "borrowed", "warm", "plain")
CHINESE_LIKE = ("这些", "一种", "那", "新", "旧", "普通", "很大", "所有", "奇怪", "")


def article(words: Sequence[str], draw: random.Random, chinese: bool, sentences: int = 14) -> str:
    """A text of different sentences, two nouns of each from `words` or one from elsewhere."""
    one = _chinese_sentence if chinese else _english_sentence
    made = [one(words, draw) for _ in range(sentences)]
    parts = [made[start : start + 5] for start in range(0, sentences, 5)]
    return "\n\n".join(("" if chinese else " ").join(part) for part in parts)


def _english_sentence(words: Sequence[str], draw: random.Random) -> str:
    nouns = [draw.choice(words), draw.choice([*words, *OTHERS]), draw.choice(OTHERS)]
    noun, other, third = (f"{draw.choice(LIKE)} {item}" for item in nouns)
    who, verb, when = draw.choice(WHO), draw.choice(VERBS), draw.choice(WHEN)
    forms = (
        f"{who} {verb} the {noun} {when}, and {draw.choice(VERBS)} that {other} too.",
        f"{when} it was the {noun} that {who} {verb}, not this {other} or a {third}.",
        f"for {who} a {other} is what {verb} her {noun} {when}?",
        f"{draw.choice(VERBS)} with the {other}, {who} {when} {verb} his {noun}.",
    )
    sentence = draw.choice(forms)
    return sentence[0].upper() + sentence[1:]


def _chinese_sentence(words: Sequence[str], draw: random.Random) -> str:
    nouns = [draw.choice(words), draw.choice([*words, *CHINESE_OTHERS]), draw.choice(CHINESE_OTHERS)]
    noun, other, third = (f"{draw.choice(CHINESE_LIKE)}{item}" for item in nouns)
    who, verb, when = draw.choice(CHINESE_WHO), draw.choice(CHINESE_VERBS), draw.choice(CHINESE_WHEN)
    return draw.choice(
        (
            f"{who}{when}{verb}了{noun}，也{draw.choice(CHINESE_VERBS)}了{other}。",
            f"是{noun}让{who}{verb}{third}的吗？{when}{draw.choice(CHINESE_WHO)}说的是{other}。",
            f"{when}，{who}的{other}和{noun}都被{draw.choice(CHINESE_WHO)}{verb}了！",
        )
    )


def seed_documents(each: int = 30) -> list[tuple[str, Document]]:
    """(topic, document) of every topic; every tenth document is held out and speaks of nothing but zeppelins."""
    found = []
    for topic, words in {**TOPICS, **CHINESE_TOPICS}.items():
        chinese = topic in CHINESE_TOPICS
        for number in range(each):
            draw = random.Random(f"{topic} {number}")
            held_out = number % 10 == 9
            own = ["飞艇" if chinese else "zeppelin"] if held_out else words.split()
            labels = {"split": "held_out" if held_out else "train", "language": "zh" if chinese else "en"}
            name = f"{topic}/{number}"
            found.append((topic, Document(name, article(own, draw, chinese), source=topic, labels=labels)))
    draw = random.Random(0)
    draw.shuffle(found)
    return found


def seeds_artifact(folder: Path, n_shards: int = 2, each: int = 30) -> Artifact:
    """The seed documents as an artifact with shards."""
    documents = [document for _, document in seed_documents(each)]

    def write(target: Path) -> None:
        (target / SHARDS).mkdir()
        for number in range(n_shards):
            file = target / SHARDS / f"{number:05d}.parquet"
            write_documents(file, documents[number::n_shards], {"split": pa.string(), "language": pa.string()})

    return make_artifact(folder, "documents", write, folder=folder.name, n_shards=n_shards, each=each)


def answer(prompt: str, seed: int | None) -> str:
    """What a model might write: the same to the same prompt and seed, in the prompt's language."""
    chinese = any("\u4e00" <= sign <= "\u9fff" for sign in prompt)
    topics = CHINESE_TOPICS if chinese else TOPICS
    draw = random.Random(f"{prompt} {seed}")
    words = next((text.split() for text in topics.values() if any(word in prompt for word in text.split())), OTHERS)
    return article(words, draw, chinese, sentences=20)


def documents_of(made: Artifact) -> list[Document]:
    """All documents of an artifact."""
    return [document for file in document_files(made.path) for document in read_documents(file)]


def content(folder: Path, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Bytes of all files of an artifact that neither the clock nor the order of replies decides."""
    told = {"artifact.json", "page.html", "replies.jsonl", *without}
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in told and file.parent.name != "receipts"
    }


def stage_settings(address: str = "", **changes: Any) -> dict[str, Any]:
    """Settings of the stage for these few documents."""
    values: dict[str, Any] = {
        "clusters": {"count": 3, "columns": 8, "passage_words": 40},
        "ask": {"prompts": 40, "max_tokens": 300},
        "engine": {"workers": 1},
    }
    if address:
        values["endpoint"] = {"address": address, "model": "writer", "longest_wait": 0.01, "concurrency": 4}
    for name, value in changes.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return values
