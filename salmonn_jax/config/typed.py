"""Reading, overriding and describing configurations, which are pydantic dataclasses.

Types and ranges are declared with a field, relations between fields in a `model_validator` of their class.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import pydantic

from salmonn_jax.errors import UserError, unknown_name

# Text is not read as a number, but an integer may stand for a float; every field must be known and finite.
STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

PositiveInt = Annotated[int, pydantic.Field(gt=0, lt=2**31)]
NonNegativeInt = Annotated[int, pydantic.Field(ge=0, lt=2**31)]


def check_multiple(name: str, size: int, divisor_name: str, divisor: int) -> None:
    """Raises ValueError if `divisor` does not divide `size`. Validators call it, so pydantic reports the path."""
    if size % divisor:
        raise ValueError(f"{name}={size}: must be a multiple of {divisor_name}={divisor}")


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a configuration to JSON values. `from_dict` reads them back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(config_class: type, values: dict[str, Any], path_prefix: str = "") -> Any:
    """Builds a configuration from JSON values.

    Args:
      config_class: configuration class.
      values: field values by name, as `to_dict` returns them.
      path_prefix: prefix of the field names in error messages, such as "model.llama.".

    Raises:
      UserError: a field is unknown or its value is not valid. The message names the field.
    """
    try:
        return pydantic.TypeAdapter(config_class).validate_json(json.dumps(values))
    except pydantic.ValidationError as errors:
        error = errors.errors(include_url=False)[0]
        names = [str(name) for name in error["loc"] if name != "[key]"]
        path = path_prefix + ".".join(names)
        if error["type"] == "unexpected_keyword_argument":
            known = [path_prefix + name for name, _ in describe_fields(config_class)]
            raise unknown_name("configuration field", path, known) from None
        if error["type"] == "value_error":  # of a validator, whose message names the fields of the class
            raise UserError(path_prefix + ".".join([*names, str(error["ctx"]["error"])])) from None
        if error["type"] == "missing":
            raise UserError(f"{path}: is required") from None
        if error["type"] == "json_invalid":  # text that is not Unicode; the position is that of the whole configuration
            raise UserError("a configuration value is not Unicode text; remove the surrogate character") from None
        raise UserError(
            f"{path}={json.dumps(error['input'])}: {error['msg'].replace('Input should', 'must')}"
        ) from None


def apply_overrides(config: Any, overrides: Sequence[str]) -> Any:
    """Returns a copy of `config` with overrides such as "optimizer.peak_lr=1e-3", which are validated together.

    Args:
      config: a configuration.
      overrides: `field=value` each; the field is a dotted path. The value is JSON; text that is not JSON, and any text
        without quotes for a field that holds text, is a string.

    Raises:
      UserError: an override has another form, its field is unknown, or its value is not valid.
    """
    values = to_dict(config)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is not a configuration override; write field=value")
        *parents, name = path.split(".")
        target = values
        for i, parent in enumerate(parents):
            if parent not in target:
                raise unknown_name("configuration field", path, [field for field, _ in describe_fields(type(config))])
            target = target[parent]
            if not isinstance(target, dict):
                raise UserError(f"{override}: {'.'.join(parents[: i + 1])} is {json.dumps(target)} and has no fields")
        is_text = isinstance(target.get(name), str) and not text.startswith('"')
        target[name] = text if is_text else _parse(text)
    return from_dict(type(config), values)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def describe_fields(config_class: type, path_prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the dotted path and the description of every field of a configuration class, depth first."""
    for name, field in config_class.__pydantic_fields__.items():
        yield path_prefix + name, field.description
        for option in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if dataclasses.is_dataclass(option):
                yield from describe_fields(option, f"{path_prefix}{name}.")


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
