"""A model's chat template: the small program, in Jinja, that turns a conversation into the text the model was trained on.

The rules are transformers' own (`utils/chat_template_utils.py`), so that a checkpoint's template says here what it says
there; importing them from transformers would take longer than to load a small model.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from nanovllm.errors import InvalidRequest

CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "
REASONING = ("reasoning_content", "thinking", "reasoning")  # names that a message's reasoning goes by; templates read the first


def render(template: str, messages: list[dict[str, Any]], /, *, add_generation_prompt: bool,
           continue_final_message: bool | str = False, tools: list[Any] | None = None, **variables: Any) -> str:
    """The text of one conversation, as `apply_chat_template` of a transformers tokenizer gives it.

    continue_final_message: leave the last message open, for the model to go on with; a name is the field to go on with.
    variables: what else the template may read, special tokens among it.

    Raises InvalidRequest when the last message cannot be continued, and what the template raises, a jinja2 TemplateError as a
    rule.
    """
    chat = [_with_reasoning({key: value for key, value in message.items() if value is not None})
            for message in _as_data(messages)]
    if continue_final_message:
        key = continue_final_message if isinstance(continue_final_message, str) else "content"
        final = _mark_end(chat[-1], key, template)
    text = _compiled(template).render(messages=chat, tools=_as_data(tools), add_generation_prompt=add_generation_prompt,
                                      **{"documents": None} | _as_data(variables))
    if not continue_final_message:
        return text
    if final.strip() not in text or CONTINUE_HERE.strip() not in text:
        raise InvalidRequest("the final message cannot be continued: the chat template does not write all of it; "
                             "continue another one.")
    end = text.rindex(CONTINUE_HERE.strip())
    # A template that strips its messages has stripped the mark's last space, and would have stripped what is before it.
    return text[:end] if text.startswith(CONTINUE_HERE, end) else text[:end].rstrip()


def variables_of(template: str) -> set[str]:
    """The names that a template reads from outside."""
    return find_undeclared_variables(_ENVIRONMENT.parse(template))


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)


def _mark_end(message: dict[str, Any], key: str, template: str) -> str:
    """Put CONTINUE_HERE behind the text that is to be continued; returns that text."""
    keys = [name for name in REASONING if message.get(name) == message.get(key)] if key in REASONING else [key]
    if message.get(key) is None or not any(name in template for name in keys):
        raise InvalidRequest(f"the final message cannot be continued: it, or the chat template, has no {key!r}; end with "
                             "an assistant's message.")
    final = message[key]
    if isinstance(final, (list, tuple)):
        part = next((part for part in reversed(final) if "text" in part), None)
        if part is None:
            raise InvalidRequest("the final message cannot be continued: it holds no text; end with an assistant's message.")
        final = part["text"]
        part["text"] = final + CONTINUE_HERE
        return str(final)
    for name in keys:
        message[name] = final + CONTINUE_HERE
    return str(final)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning} | message | {"reasoning_content": reasoning}


def _as_data(value: Any) -> Any:
    """A copy made of nothing but JSON's types: an object of any other has methods, and a template could call them."""
    if value is None or isinstance(value, bool):
        return value
    for plain in (str, int, float):
        if isinstance(value, plain):
            return value if type(value) is plain else plain(value)
    if isinstance(value, Mapping):
        return {_as_data(key): _as_data(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_data(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_as_data(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _as_data(getattr(value, field.name)) for field in fields(value)}
    if callable(getattr(value, "model_dump", None)):  # pydantic's
        return _as_data(value.model_dump())
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):  # numpy's scalars
        return _as_data(value.item())
    return f"<{type(value).__name__}>"


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks what the assistant wrote, for training: here it is just written."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` for templates, which must not get hold of the class: from it, a program gets everywhere."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja's own, which would let a template set names that Python uses itself."""

    def __init__(*args: Any, **attributes: Any) -> None:  # as Jinja's: `self` may be an attribute
        self, *rest = args
        attributes = dict(*rest, **attributes)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not set {name!r} on a namespace")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """Without the escapes for HTML that Jinja's own puts in."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "dict": _Dict(),
                            "namespace": _Namespace}
    return environment


_ENVIRONMENT = _environment()
