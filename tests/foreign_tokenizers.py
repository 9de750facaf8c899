"""Tokenizer files as other programs write them, small: in the manner of GPT-2, Llama 3, Qwen 2 and Llama 2."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ENGLISH = [
    "The reader returns 12345 rows; don't read the rows twice. The reader is a reader of rows.\n",
    "Sorted lists keep their order, and the order of the sorted lists is the order of the reader.\n",
    "Whoever reads the returned rows twice returns to the order of the reading.\n",
]
CHINESE = [
    "这个函数返回去掉缩进的文本，文本的每一行都去掉共同的缩进。",
    "这个函数返回排序后的列表，列表的顺序就是文本的顺序。",
]
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(size: int = 360) -> Tokenizer:
    """A byte-level BPE without any special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(ENGLISH * 3, trainer)
    return tokenizer


def llama3() -> Tokenizer:
    """Whole pieces before merges, special tokens outside the model's entries, a token put before every text."""
    tokenizer = byte_level()
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    content["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(content))
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", *(f"<|reserved_{i}|>" for i in range(4))]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    first = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", first)]),
        ]
    )
    tokenizer.enable_truncation(5)
    return tokenizer


def qwen2() -> Tokenizer:
    """Composed first (NFC), with special tokens and one that is not special."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return tokenizer


def llama2() -> Tokenizer:
    """In the manner of SentencePiece: spaces are another sign, unknown characters fall back to bytes."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁": 257, "a": 258, "▁a": 259}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def text_of(tokenizer: Tokenizer, **changes: Any) -> str:
    """The file's content, with changes to its top level or, by dotted names, below."""
    content = json.loads(tokenizer.to_str())
    for name, value in changes.items():
        *path, last = name.split("__")
        node = content
        for part in path:
            node = node[part]
        node[last] = value
    return json.dumps(content)
