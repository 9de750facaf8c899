"""The one object that turns messages into token ids and into the mask of what carries loss.

Ids are made segment by segment: a role's and the end's special ids by id, every content by `vocabulary.encode`,
which never yields a special id. So a text that spells `<|end|>` cannot end a turn, and no boundary is ever found
by slicing a rendered string. The same object is saved with every model and checked when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from chatloom.dialogue.jinja import probe_conversations, render_jinja
from chatloom.dialogue.record import Conversation, DialogueError, Message, Preference

FILE = "chat_template.json"
JINJA_FILE = "chat_template.jinja"
KEYS = ("format", "name", "role_tokens", "end_token", "reserved_tokens", "chat_template")


class Encoder(Protocol):
    """What the template needs of a vocabulary (`chatloom.tokens.vocabulary.Vocabulary` is one)."""

    def encode(self, text: str) -> list[int]: ...

    def id_of(self, token: str) -> int: ...

    @property
    def eos_id(self) -> int: ...


@dataclass(frozen=True)
class Rendered:
    """Token ids and, of each, its weight as a target: `mask[i]` is the weight of predicting `ids[i]`."""

    ids: list[int]
    mask: list[float]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Fitted:
    """What `fit` kept: `messages` is None where even the last turn is too long (never cut inside a message)."""

    messages: list[Message] | None
    tokens: int
    dropped_messages: int
    reason: str = ""


@dataclass(frozen=True)
class ChatTemplate:
    """Renders `<|role|>content<|end|>` for each message; the reply is opened with `<|assistant|>`.

    `role_tokens` gives the special token that opens each role's message, `end_token` the one that closes it;
    `reserved_tokens` are the vocabulary's other special tokens, which no content may turn into either.
    """

    name: str = "chatloom"
    role_tokens: Mapping[str, str] = field(
        default_factory=lambda: {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
    )
    end_token: str = "<|end|>"
    reserved_tokens: tuple[str, ...] = ("<|pad|>", "<|endoftext|>")

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles this template can render."""
        return tuple(self.role_tokens)

    def render(
        self, messages: Sequence[Message], vocabulary: Encoder, *, open_reply: bool = False, ended: bool = True
    ) -> Rendered:
        """Return ids and loss mask of the messages.

        `open_reply=True` adds the assistant's opening token, so that a model goes on with its reply;
        `ended=False` leaves the last message without its end token (an answer that never stopped).
        Mask: 0 on opening tokens; on content and end token the message's `weight`, by default 1 for the
        assistant and 0 for any other role. Raises DialogueError on a role that the template does not know.
        """
        end = vocabulary.id_of(self.end_token)
        ids: list[int] = []
        mask: list[float] = []
        for position, message in enumerate(messages):
            content = vocabulary.encode(message.content)
            weight = message.weight
            if weight is None:
                weight = 1.0 if message.role == "assistant" else 0.0
            closed = ended or position < len(messages) - 1
            ids += [self._opening(message.role, vocabulary), *content]
            mask += [0.0] + [weight] * len(content)
            if closed:
                ids.append(end)
                mask.append(weight)
        if open_reply:
            ids.append(self._opening("assistant", vocabulary))
            mask.append(0.0)
        return Rendered(ids, mask)

    def render_answer(self, pair: Preference, index: int, vocabulary: Encoder) -> Rendered:
        """Return prompt + answer `index` of a preference; only that answer (and its end) carries weight 1."""
        prompt = self.render(pair.prompt, vocabulary, open_reply=True)
        reply = vocabulary.encode(pair.answers[index])
        if pair.ended[index]:
            reply = [*reply, vocabulary.id_of(self.end_token)]
        return Rendered(prompt.ids + reply, [0.0] * len(prompt) + [1.0] * len(reply))

    def stop_ids(self, vocabulary: Encoder) -> list[int]:
        """Ids that end a reply: the template's end token and the vocabulary's `<|endoftext|>`."""
        return [vocabulary.id_of(self.end_token), vocabulary.eos_id]

    def fit(
        self, conversation: Conversation | Sequence[Message], vocabulary: Encoder, max_tokens: int, *, reserve: int = 0
    ) -> Fitted:
        """Drop whole turns from the front (the system message stays) until at most `max_tokens - reserve` remain.

        A turn is a user's message and all replies up to the next one, so no reply is left without its question
        and none loses its end token. `reserve` is room for a reply, its opening token included. Where the last
        turn alone is too long nothing is cut: `messages` is None and `reason` gives the numbers.
        """
        messages = list(conversation.messages if isinstance(conversation, Conversation) else conversation)
        room = max_tokens - reserve
        lengths = [len(vocabulary.encode(message.content)) + 2 for message in messages]
        first = 1 if messages and messages[0].role == "system" else 0
        system = sum(lengths[:first])
        starts = [i for i in range(first, len(messages)) if i == first or messages[i].role == "user"]
        for start in starts:
            tokens = system + sum(lengths[start:])
            if tokens <= room:
                return Fitted(messages[:first] + messages[start:], tokens, start - first)
        tokens = system + sum(lengths[starts[-1] :]) if starts else system
        reserved = f" less {reserve} kept for the reply" if reserve else ""
        return Fitted(
            None, tokens, 0, f"the last turn{' with the system message' if first else ''} takes {tokens} tokens; "
            f"the limit is {max_tokens}{reserved}"
        )  # fmt: skip

    def render_text(self, messages: Sequence[Message], *, open_reply: bool = False) -> str:
        """Return the rendering as one string, for people to read and for checking the Jinja form."""
        text = "".join(f"{self._token(message.role)}{message.content}{self.end_token}" for message in messages)
        return text + (self._token("assistant") if open_reply else "")

    @property
    def jinja(self) -> str:
        """The same template for `transformers`: equal ids, and `{% generation %}` around what carries loss.

        `transformers` finds special tokens in the rendered text, so a content that spells one would turn into
        it; the Jinja form refuses such a content instead of letting it forge a turn.
        """
        special = self._special
        listed = ", ".join(_quote(token) for token in special)
        branches = "".join(
            f"{{%- {'if' if i == 0 else 'elif'} message['role'] == {_quote(role)} -%}}" + self._jinja_message(role)
            for i, role in enumerate(self.role_tokens)
        )
        return (
            "{%- for message in messages -%}"
            "{%- if message['content'] is not string -%}"
            "{{- raise_exception('this chat template takes text contents only') -}}{%- endif -%}"
            f"{{%- for token in [{listed}] -%}}{{%- if token in message['content'] -%}}"
            "{{- raise_exception('a message spells the special token ' + token) -}}{%- endif -%}{%- endfor -%}"
            f"{branches}{{%- else -%}}"
            "{{- raise_exception('this chat template has no role ' + message['role']) -}}{%- endif -%}"
            "{%- endfor -%}"
            f"{{%- if add_generation_prompt -%}}{{{{- {_quote(self._token('assistant'))} -}}}}{{%- endif -%}}"
        )

    def _jinja_message(self, role: str) -> str:
        opening = f"{{{{- {_quote(self.role_tokens[role])} -}}}}"
        body = f"{{{{- message['content'] + {_quote(self.end_token)} -}}}}"
        return opening + (f"{{%- generation -%}}{body}{{%- endgeneration -%}}" if role == "assistant" else body)

    def save(self, folder: Path | str) -> None:
        """Write chat_template.json (with hash) and chat_template.jinja, and set tokenizer_config.json's template."""
        folder = Path(folder)
        state = {
            "format": 1,
            "name": self.name,
            "role_tokens": dict(self.role_tokens),
            "end_token": self.end_token,
            "reserved_tokens": list(self.reserved_tokens),
            "chat_template": self.jinja,
        }
        _write_json(folder / FILE, {**state, "sha256": _hash(state)})
        (folder / JINJA_FILE).write_text(self.jinja, encoding="utf-8")
        config = folder / "tokenizer_config.json"
        if config.is_file():
            _write_json(config, {**json.loads(config.read_text(encoding="utf-8")), "chat_template": self.jinja})

    @classmethod
    def load(cls, folder: Path | str, vocabulary: Encoder | None = None) -> ChatTemplate:
        """Read the template of a model folder and check that its Jinja form gives the same ids as ours.

        `vocabulary` defaults to the folder's own. Raises DialogueError where the file is missing or changed by
        hand, where tokenizer_config.json or chat_template.jinja hold another template, or where ids differ.
        """
        folder = Path(folder)
        state = _read_state(folder / FILE)
        template = cls(
            str(state["name"]), dict(state["role_tokens"]), str(state["end_token"]), tuple(state["reserved_tokens"])
        )
        if vocabulary is None:
            from chatloom.tokens.vocabulary import Vocabulary

            vocabulary = Vocabulary.load(folder)
        for place, jinja in _jinja_copies(folder):
            if jinja != state["chat_template"]:
                raise DialogueError(
                    f"{place} holds another chat template than {folder / FILE}; the model would be trained and "
                    "served with different tokens. Restore the folder, or save the template into it again"
                )
        template.check_jinja(str(state["chat_template"]), vocabulary, where=str(folder / FILE))
        return template

    def check_jinja(self, jinja: str, vocabulary: Encoder, *, where: str = "the Jinja template") -> None:
        """Render the probe conversations through `jinja` and compare ids with `render`; raise where they differ."""
        special = self._special
        for messages in probe_conversations(self.roles):
            for open_reply in (False, True):
                ours = self.render(messages, vocabulary, open_reply=open_reply).ids
                text = render_jinja(jinja, messages, open_reply=open_reply, where=where)
                theirs = _encode_with_special(text, special, vocabulary)
                if ours != theirs:
                    raise DialogueError(
                        f"{where}: its Jinja form renders {text!r}, whose ids {theirs[:24]} differ from the "
                        f"template's own {ours[:24]} ({self.render_text(messages, open_reply=open_reply)!r})"
                    )

    @property
    def _special(self) -> list[str]:
        return [*self.role_tokens.values(), self.end_token, *self.reserved_tokens]

    def _token(self, role: str) -> str:
        if role not in self.role_tokens:
            raise DialogueError(
                f"chat template {self.name!r} has no role {role!r}; it renders {', '.join(self.role_tokens)}"
            )
        return self.role_tokens[role]

    def _opening(self, role: str, vocabulary: Encoder) -> int:
        return vocabulary.id_of(self._token(role))


def _encode_with_special(text: str, special: Sequence[str], vocabulary: Encoder) -> list[int]:
    """Encode a rendered string as a Hugging Face tokenizer does: special tokens by name, the rest as text."""
    ids: list[int] = []
    while text:
        found = [(text.find(token), token) for token in special if token in text]
        at, token = min(found, default=(len(text), ""), key=lambda hit: (hit[0], -len(hit[1])))
        ids += vocabulary.encode(text[:at])
        if token:
            ids.append(vocabulary.id_of(token))
        text = text[at + len(token) :]
    return ids


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _hash(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DialogueError(f"{path} is missing: the folder has no chat template; expected one that chatloom saved")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: state[key] for key in KEYS}
        expected = str(state["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise DialogueError(f"{path} is not a chat template saved by chatloom: {error!r}") from None
    if kept["format"] != 1:
        raise DialogueError(f"{path} has format {kept['format']!r}; this version reads format 1")
    if _hash(kept) != expected:
        raise DialogueError(f"{path} was changed after it was saved: its content does not match its sha256")
    return kept


def _jinja_copies(folder: Path) -> list[tuple[Path, str]]:
    copies: list[tuple[Path, str]] = []
    if (folder / JINJA_FILE).is_file():
        copies.append((folder / JINJA_FILE, (folder / JINJA_FILE).read_text(encoding="utf-8")))
    config = folder / "tokenizer_config.json"
    if config.is_file():
        held = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
        if held is not None:
            copies.append((config, held))
    return copies
