"""Prompt template and stop tokens of a converted model, read from the files of its language model.

The chat template of a Hugging Face directory is a jinja text. It is rendered once, for one question, so a model stores
plain text with `{}` in place of the question, its system prompt included.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from salmonn_jax.conversion.formats import tensors
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.prompts import AUDIO_PLACEHOLDER, PROMPT_TEMPLATES
from salmonn_jax.tokenizer import Tokenizer

_ANSWER = "The answer."  # stands for an answer, to find what follows it in a chat template


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """Prompt template and stop tokens. The fields except `origin` are those of `salmonn_jax.config.ModelConfig`."""

    prompt_template: str
    add_bos_token: bool
    stop_token_ids: tuple[int, ...]
    origin: str  # of the template


class _GenerationTag(jinja2.ext.Extension):
    """The tags `{% generation %}` of transformers, which mark the answer for training and print nothing."""

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def resolve(llm: pathlib.Path, tokenizer: Tokenizer, option: str | None) -> PromptFormat:
    """Returns the prompt format of a model to be trained.

    Args:
      llm: Hugging Face directory of the language model.
      tokenizer: its tokenizer.
      option: name of a template, or a text with `{}`. None chooses the chat template of `llm`, or the template of the
        original if it has none.

    Raises:
      UserError: the name is unknown, the text has no `{}`, the tokenizer lacks a token of the template, or the chat
        template cannot be rendered.
    """
    if option is not None:
        return _from_option(llm, tokenizer, option)
    chat_template = _read_chat_template(llm)
    if chat_template is None:
        template, end = PROMPT_TEMPLATES["vicuna"].text, tokenizer.eos_token_id
        stop_token_ids = read_stop_tokens(llm, tokenizer, end)
        return PromptFormat(template, True, stop_token_ids, f"the original's default: {llm} has no chat template")
    template, end = _render_chat_template(llm, tokenizer, chat_template)
    # transformers adds no token to a rendered chat template: its text has the start token, if there is to be one.
    return PromptFormat(
        template, False, read_stop_tokens(llm, tokenizer, end), f"from the chat template of {llm}, rendered"
    )


def from_checkpoint(
    llm: pathlib.Path, tokenizer: Tokenizer, stored: Mapping[str, Any], path: pathlib.Path
) -> PromptFormat:
    """Returns the prompt format with which a checkpoint was trained: by default that of the original.

    Args:
      llm: Hugging Face directory of the language model.
      tokenizer: its tokenizer.
      stored: `model` section of the checkpoint's configuration, which may have some of the fields of `PromptFormat`.
      path: the checkpoint, named in messages.
    """
    template, stop_token_ids = stored.get("prompt_template"), stored.get("stop_token_ids")
    add_bos_token = stored.get("add_bos_token", True)
    if not isinstance(template, str | None):
        raise UserError(f"the configuration in {path} has prompt_template={template!r}, not str")
    if not isinstance(add_bos_token, bool):
        raise UserError(f"the configuration in {path} has add_bos_token={add_bos_token!r}, not bool")
    if stop_token_ids is None:
        stop_token_ids = read_stop_tokens(llm, tokenizer, tokenizer.eos_token_id)
    elif not _are_token_ids(stop_token_ids, tokenizer):
        raise UserError(f"the configuration in {path} has stop_token_ids={stop_token_ids!r}, not ids of its tokenizer")
    origin = "the original's default" if template is None else "from the checkpoint"
    return PromptFormat(
        PROMPT_TEMPLATES["vicuna"].text if template is None else template, add_bos_token, tuple(stop_token_ids), origin
    )


def read_stop_tokens(llm: pathlib.Path, tokenizer: Tokenizer, end_token_id: int) -> tuple[int, ...]:
    """Returns the stop tokens of a language model.

    They are `end_token_id`, the tokenizer's end token, and the end tokens in `generation_config.json` or, as in
    transformers, in `config.json` if the former names none.

    Raises:
      UserError: a file does not name ids of the tokenizer.
    """
    ids = [end_token_id, tokenizer.eos_token_id]
    for path in (llm / "generation_config.json", llm / "config.json"):
        value = tensors.read_json(path).get("eos_token_id") if path.is_file() else None
        if value is None:
            continue
        named = value if isinstance(value, list) else [value]
        if not _are_token_ids(named, tokenizer):
            raise UserError(
                f"{path} has eos_token_id={json.dumps(value)}; the tokenizer has ids from 0 to "
                f"{tokenizer.vocab_size - 1}: correct one of the two"
            )
        ids += named
        break
    return tuple(dict.fromkeys(ids))


def _are_token_ids(values: Any, tokenizer: Tokenizer) -> bool:
    """Returns whether a value of a JSON file is a list of token ids."""
    return isinstance(values, Sequence) and all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in values)


def _from_option(llm: pathlib.Path, tokenizer: Tokenizer, option: str) -> PromptFormat:
    """Returns the prompt format of a template that is given by name or as a text. Arguments are those of `resolve`."""
    special_tokens: tuple[str, ...] = ()
    if "{}" in option:
        template = option.replace("\\n", "\n")
    elif not option.strip():
        raise UserError("--prompt-template is empty; give a name, or a text with {} in place of the prompt")
    elif option in PROMPT_TEMPLATES:
        template, special_tokens = PROMPT_TEMPLATES[option]
    elif re.fullmatch(r"[\w.-]+", option):
        error = unknown_name("prompt template", option, PROMPT_TEMPLATES)
        raise UserError(f"{error}, or give a text with {{}} in place of the prompt")
    else:
        raise UserError(f"--prompt-template {option!r}: a text must contain {{}}, the place of the prompt")
    missing = [token for token in special_tokens if not _has_token(tokenizer, token)]
    if missing:
        raise UserError(
            f"--prompt-template {option}: the tokenizer of {llm} has no token {missing[0]}; choose another template"
        )
    _check_text(template, "--prompt-template")
    end = tokenizer.token_to_id(special_tokens[-1]) if special_tokens else tokenizer.eos_token_id
    starts_with_bos = tokenizer.encode(template)[:1] == [tokenizer.bos_token_id]
    return PromptFormat(template, not starts_with_bos, read_stop_tokens(llm, tokenizer, end), "from the command line")


def _has_token(tokenizer: Tokenizer, token: str) -> bool:
    """Returns whether the tokenizer encodes `token` as one token."""
    try:
        return tokenizer.token_to_id(token) in tokenizer.encode(token)
    except UserError:
        return False


def _check_text(template: str, source: str) -> None:
    """Raises UserError, which names `source`, unless a template has one place for the prompt and none for a clip."""
    if template.count("{}") != 1:
        raise UserError(f"{source} gives {template!r}, which must contain {{}}, the place of the prompt, exactly once")
    if AUDIO_PLACEHOLDER in template:
        raise UserError(f"{source} gives {template!r}: {AUDIO_PLACEHOLDER} belongs to the prompt, not to the template")


def _read_chat_template(llm: pathlib.Path) -> str | None:
    """Returns the chat template of a Hugging Face directory; None if it has none.

    transformers saves it as `chat_template.jinja`, or in `tokenizer_config.json` as a text or as a list of named texts.
    """
    path = llm / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    value = _read_tokenizer_config(llm).get("chat_template")
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, Mapping)}.get(
            "default"
        )
    if not isinstance(value, str | None):
        raise UserError(f"{llm / 'tokenizer_config.json'} has a chat_template that is no text")
    return value or None


def _read_tokenizer_config(llm: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of `tokenizer_config.json`, or nothing if there is no such file."""
    path = llm / "tokenizer_config.json"
    return tensors.read_json(path) if path.is_file() else {}


def _render_chat_template(llm: pathlib.Path, tokenizer: Tokenizer, chat_template: str) -> tuple[str, int]:
    """Renders a chat template for one question.

    Args:
      llm: Hugging Face directory, named in messages.
      tokenizer: its tokenizer.
      chat_template: jinja text.

    Returns:
      The text up to the answer, with `{}` in place of the question, and the token with which an answer ends.
    """
    question = {"role": "user", "content": "{}"}
    answer = {"role": "assistant", "content": _ANSWER}
    try:
        render = _environment().from_string(chat_template).render
        variables = {"tools": None, "documents": None, **_special_tokens(llm)}
        template = render(messages=[question], add_generation_prompt=True, **variables)
    except Exception as error:  # a template can raise anything
        reason = " ".join(str(error).split())
        raise UserError(
            f"the chat template of {llm} cannot be rendered ({reason}); choose a template with --prompt-template"
        ) from None
    _check_text(template, f"the chat template of {llm}")
    try:
        after_answer = render(messages=[question, answer], add_generation_prompt=False, **variables)
    except Exception:  # a template that only asks; answers end as texts do
        return template, tokenizer.eos_token_id
    ids = tokenizer.encode(after_answer.rpartition(_ANSWER)[2])
    return template, next((i for i in ids if tokenizer.is_special(i)), tokenizer.eos_token_id)


def _special_tokens(llm: pathlib.Path) -> dict[str, str]:
    """Returns the special tokens that a chat template may name: `bos_token`, `eos_token` and others."""
    tokens = {
        name: value["content"] if isinstance(value, Mapping) and "content" in value else value
        for name, value in _read_tokenizer_config(llm).items()
        if name.endswith("_token")
    }
    return {name: token for name, token in tokens.items() if isinstance(token, str)}


def _environment() -> jinja2.sandbox.SandboxedEnvironment:
    """Returns jinja as chat templates expect it, with the settings and functions of transformers.

    `strftime_now`, which gives today's date, is left out: a model keeps one template, and templates that ask whether
    this function exists have a date of their own.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _raise_exception(message: str) -> None:
    """Raises a jinja error. Chat templates call it for messages that they do not support."""
    raise jinja2.TemplateError(message)
