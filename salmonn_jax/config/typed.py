"""Conversion of configurations from and to JSON values, and overrides of single fields."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal

from salmonn_jax.errors import UserError, unknown_name


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a configuration to JSON values. `from_dict` reads them back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(config_class: type, values: dict[str, Any], path_prefix: str = "") -> Any:
    """Builds a configuration from JSON values.

    Args:
      config_class: dataclass to build.
      values: field values by name, as `to_dict` returns them.
      path_prefix: prefix of the field names in error messages, such as "model.llama.".

    Raises:
      UserError: a field is unknown or its value has the wrong type. The message names the field.
    """
    hints = typing.get_type_hints(config_class)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise unknown_name("configuration field", path_prefix + key, [path_prefix + h for h in hints])
        arguments[key] = _cast(hints[key], value, path_prefix + key)
    return config_class(**arguments)


def apply_override(config: Any, path: str, text: str) -> Any:
    """Returns a copy of `config` in which one field has a new value.

    Args:
      config: a configuration dataclass.
      path: dotted path of the field, such as "optimizer.peak_lr" or "data.mixture.tones".
      text: the new value as JSON; text that is not JSON is used as a string.

    Raises:
      UserError: the field is unknown or the value has the wrong type.
    """
    head, _, rest = path.partition(".")
    hints = typing.get_type_hints(type(config))
    if head not in hints:
        raise unknown_name("configuration field", head, hints)
    if rest and isinstance(getattr(config, head), dict):
        value = {**getattr(config, head), rest: json.loads(text)}
    elif rest:
        if not dataclasses.is_dataclass(getattr(config, head)):
            raise UserError(f"{head} has no fields; write {head}=VALUE instead of {path}={text}")
        value = apply_override(getattr(config, head), rest, text)
    else:
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        value = _cast(hints[head], value, path)
    return dataclasses.replace(config, **{head: value})


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """Returns a description of the first field in which two configurations differ; None if they are equal.

    Args:
      old: JSON values of a configuration, as `to_dict` returns them.
      new: JSON values of the configuration that is compared with it.
      path: dotted path of the two values, for the description.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            difference = first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if difference:
                return difference
        return None
    return None if old == new else f"{path} is {old!r}, not {new!r}"


def _cast(hint: Any, value: Any, path: str) -> Any:
    """Converts a JSON value to a field's type. Raises UserError naming the field if the type is wrong.

    Args:
      hint: type annotation of the field.
      value: JSON value, or a value that already has the field's type.
      path: dotted path of the field, for the error message.
    """
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, path + ".")
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        return _cast(typing.get_args(hint)[0], value, path)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise unknown_name(f"value of {path}", str(value), typing.get_args(hint))
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin or hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{path} must be {getattr(hint, '__name__', hint)}, not {value!r}")
    return value
