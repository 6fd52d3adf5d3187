"""Small language models of the supported families, each with its kind of tokenizer, chat template and stop tokens.

The chat templates are written in the style of the models they stand for.
"""

from __future__ import annotations

import json
import pathlib

from tests import torch_checkpoints

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now("%d %b %Y") %}
{%- else %}{% set date_string = "26 Jul 2024" %}{% endif %}{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "<|eot_id|>" }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" }}
    {{- message["content"] | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}{% endif %}"""
QWEN = """{%- if tools is not none %}{{ raise_exception("no tools here") }}{% endif %}
{%- if messages[0].role != "system" %}{{ "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" }}{% endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- "<|im_start|>assistant\\n" }}{% generation %}{{ message.content + "<|im_end|>" }}{% endgeneration %}
        {{- "\\n" }}
        {%- continue %}
    {%- endif %}
    {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ "<think>\\n\\n</think>\\n\\n" }}{% endif %}
{%- endif %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{%- if message.role == "user" %}{{ "[INST] " + message.content + " [/INST]" }}
{%- elif message.role == "assistant" %}{{ message.content + eos_token }}
{%- else %}{{ raise_exception("only user and assistant") }}{% endif %}{% endfor %}"""
TINY_LLAMA = """{% for message in messages %}
{{ "<|" + message.role + "|>\n" + message.content + eos_token + "\n" }}
{% endfor %}{% if add_generation_prompt %}{{ "<|assistant|>\n" }}{% endif %}"""


def write_llama3(directory: pathlib.Path) -> pathlib.Path:
    """A tokenizer that adds its start token, a chat template that has it too, and two end tokens."""
    torch_checkpoints.write_llama(directory, num_hidden_layers=1, eos_token_id=[1, 4])
    torch_checkpoints.write_tokenizer(
        directory,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        adds_bos=True,
        chat_template=LLAMA3,
    )
    return directory


def write_qwen(directory: pathlib.Path) -> pathlib.Path:
    """No start token, named chat templates, and end tokens that `generation_config.json` lists."""
    torch_checkpoints.write_llama(directory, model_type="qwen3", num_hidden_layers=1, head_dim=12)
    torch_checkpoints.write_tokenizer(
        directory,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos_token=None,
        eos_token="<|im_end|>",
        chat_template=[{"name": "tools", "template": "{{ x.y.z }}"}, {"name": "default", "template": QWEN}],
    )
    write_stop_tokens(directory, [2, 0])
    return directory


def write_mistral(directory: pathlib.Path) -> pathlib.Path:
    """A sentencepiece tokenizer, and a chat template in a file of its own, which goes before the other."""
    torch_checkpoints.write_llama(directory, model_type="mistral", num_hidden_layers=1)
    values = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "{{ x.y.z }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(values))
    (directory / "chat_template.jinja").write_text(MISTRAL)
    return directory


def write_tiny_llama(directory: pathlib.Path) -> pathlib.Path:
    """A tokenizer that adds its start token, and a chat template without it."""
    torch_checkpoints.write_llama(directory, num_hidden_layers=1)
    torch_checkpoints.write_tokenizer(
        directory,
        ("<unk>", "<s>", "</s>"),
        bos_token="<s>",
        eos_token="</s>",
        adds_bos=True,
        chat_template=TINY_LLAMA,
    )
    return directory


FAMILIES = {"llama3": write_llama3, "chatml": write_qwen, "mistral": write_mistral, "custom": write_tiny_llama}
STOP_TOKENS = {"llama3": (4, 1), "chatml": (2, 0), "mistral": (2,), "custom": (2,)}


def write_stop_tokens(llm: pathlib.Path, token_ids: object) -> None:
    """Writes the end tokens of a language model to its `generation_config.json`."""
    (llm / "generation_config.json").write_text(json.dumps({"eos_token_id": token_ids}))
