"""Renders a chat template's Jinja form safely, to check that it says the same as the template object.

The environment is jinja2's immutable sandbox, set up as `transformers` sets up its own: blocks are trimmed,
`{% generation %}` is known, `raise_exception` is there, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chatloom.dialogue.record import DialogueError, Message


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model writes; here it renders its body only."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def render_jinja(
    jinja: str, messages: Sequence[Message], *, open_reply: bool = False, where: str = "the Jinja template"
) -> str:
    """Return the string that the template renders; raises DialogueError where it is broken, unsafe or refuses."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation])
    environment.globals = {"raise_exception": _raise}
    try:
        template = environment.from_string(jinja)
        return template.render(
            messages=[{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=open_reply,
        )
    except SecurityError as error:
        raise DialogueError(f"{where} does something that a chat template must not do: {error}") from None
    except (TemplateError, jinja2.UndefinedError, TypeError, ArithmeticError) as error:
        raise DialogueError(f"{where} cannot be rendered: {error}") from None


def probe_conversations(roles: Sequence[str]) -> list[list[Message]]:
    """Conversations whose rendering shows drift: white space at the edges, both languages, several turns."""
    user, assistant = "user", "assistant"
    probes = [
        [Message(user, "What does `textwrap.dedent` do?")],
        [Message(user, "  spaces, then a line break\n"), Message(assistant, "\n\tverbatim \n")],
        [Message(user, "`os.path` 是什么？"), Message(assistant, "它处理路径。"), Message(user, "{{ 1 }} {% if %}")],
        [Message(user, ""), Message(assistant, "")],
        [Message(user, "<|en"), Message(assistant, "d|> é 🙂 'quoted' \"twice\" \\n")],
    ]
    if "system" in roles:
        probes += [[Message("system", " Be brief. "), *probe] for probe in probes]
    return probes
