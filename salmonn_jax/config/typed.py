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
        names = _field_names(error["loc"], values)
        path = path_prefix + ".".join(names)
        if error["type"] == "unexpected_keyword_argument":
            raise unknown_name("configuration field", path, field_paths(config_class, path_prefix)) from None
        if error["type"] == "union_tag_invalid":  # of a section with several classes, such as `optimizer`
            tag, known = error["input"]["name"], error["ctx"]["expected_tags"]
            raise UserError(f"{path}.name={json.dumps(tag)}: must be one of {known}") from None
        if error["type"] == "value_error":  # of a validator, whose message names the fields of the class
            raise UserError(path_prefix + ".".join([*names, str(error["ctx"]["error"])])) from None
        if error["type"] in ("missing", "union_tag_not_found"):
            raise UserError(f"{path}{'' if error['type'] == 'missing' else '.name'}: is required") from None
        if error["type"] == "json_invalid":  # text that is not Unicode; the position is that of the whole configuration
            raise UserError("a configuration value is not Unicode text; remove the surrogate character") from None
        raise UserError(
            f"{path}={json.dumps(error['input'])}: {error['msg'].replace('Input should', 'must')}"
        ) from None


def _field_names(location: Sequence[str | int], values: Any) -> list[str]:
    """Returns the field names in pydantic's location of an error, without its marks for keys and for chosen classes."""
    names = []
    for part in location:
        if part == "[key]" or (isinstance(values, dict) and part == values.get("name")):
            continue
        names.append(str(part))
        values = values.get(part) if isinstance(values, dict) else None
    return names


def apply_overrides(config: Any, overrides: Sequence[str], path_prefix: str = "") -> Any:
    """Returns a copy of `config` with overrides such as "lr_schedule.peak_lr=1e-3", which are validated together.

    Args:
      config: a configuration.
      overrides: `field=value` each; the field is a dotted path. The value is JSON; text that is not JSON, and any text
        without quotes for a field that holds text, is a string. Another `name` of a section such as `optimizer` resets
        its other fields to the defaults of the named class; it is applied before the other overrides.
      path_prefix: prefix of the field names in error messages, such as "model.".

    Raises:
      UserError: an override has another form, its field is unknown, or its value is not valid.
    """
    values = to_dict(config)
    for override in sorted(overrides, key=lambda text: not text.partition("=")[0].endswith(".name")):
        path, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{path_prefix + override!r} is not a configuration override; write field=value")
        *parents, name = path.split(".")
        target = values
        for i, parent in enumerate(parents):
            if parent not in target:
                raise unknown_name("configuration field", path_prefix + path, field_paths(type(config), path_prefix))
            target = target[parent]
            if not isinstance(target, dict):
                at = path_prefix + ".".join(parents[: i + 1])
                raise UserError(f"{path_prefix}{override}: {at} is {json.dumps(target)} and has no fields")
        is_text = isinstance(target.get(name), str) and not text.startswith('"')
        value = text if is_text else _parse(text)
        if name == "name" and value != target.get(name):
            target.clear()
        target[name] = value
    return from_dict(type(config), values, path_prefix)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def field_paths(config_class: type, path_prefix: str = "") -> list[str]:
    """Returns the dotted paths of all fields of a configuration class, depth first."""
    paths = []
    for name, field in config_class.__pydantic_fields__.items():
        paths.append(path_prefix + name)
        for option in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if dataclasses.is_dataclass(option):
                paths += field_paths(option, f"{path_prefix}{name}.")
    return list(dict.fromkeys(paths))


def describe_fields(config: Any, path_prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yields the dotted path, value and description of every field that is not itself a configuration."""
    for name, field in type(config).__pydantic_fields__.items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from describe_fields(value, f"{path_prefix}{name}.")
        else:
            yield path_prefix + name, value, field.description


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
