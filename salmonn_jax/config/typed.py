"""Reading, overriding and describing configurations, which are pydantic dataclasses.

Types and ranges are declared with a field, relations between fields in a `model_validator` of their class.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import pydantic
import pydantic_core

from salmonn_jax.errors import UserError, unknown_name

# Text is not read as a number, but an integer may stand for a float; every field must be known and finite.
STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

PositiveInt = Annotated[int, pydantic.Field(gt=0, lt=2**31)]
NonNegativeInt = Annotated[int, pydantic.Field(ge=0, lt=2**31)]


def check_multiple(name: str, size: int, divisor_name: str, divisor: int) -> None:
    """Raises ValueError if `divisor` does not divide `size`. Validators call it, so pydantic reports the path."""
    if size % divisor:
        raise ValueError(f"{name}={size}: must be a multiple of {divisor_name}={divisor}")


# Messages for pydantic's types of errors. `path` is that of the field, `section` that of its section with a final dot.
_MESSAGES = {
    "missing": "{path}: is required",
    "union_tag_not_found": "{path}.name: is required",
    "union_tag_invalid": '{path}.name="{tag}": must be one of {expected_tags}',
    "value_error": "{section}{error}",  # of a validator, whose message names the fields of the class
    "json_invalid": "a configuration value is not Unicode text; remove the surrogate character",
}


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a configuration to JSON values. `from_dict` reads them back."""
    return pydantic_core.to_jsonable_python(config)


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
    section = path_prefix + "".join(f"{name}." for name in _field_names(error["loc"], values))
    path = section.removesuffix(".")
    if error["type"] == "unexpected_keyword_argument":
        raise unknown_name("configuration field", path, field_paths(config_class, path_prefix))
    template = _MESSAGES.get(error["type"], "{path}={value}: {message}")
    value, message = json.dumps(error["input"]), error["msg"].replace("Input should", "must")
    raise UserError(template.format(section=section, path=path, value=value, message=message, **error.get("ctx", {})))


def _field_names(location: Sequence[str | int], values: Any) -> Iterator[str | int]:
    """Yields the field names in pydantic's location of an error, without its marks for keys and for chosen classes."""
    for part in location:
        if part != "[key]" and not (isinstance(values, dict) and part == values.get("name")):
            yield part
            values = values.get(part) if isinstance(values, dict) else None


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
        section = values
        for parent in parents:
            if not isinstance(section, dict) or parent not in section:
                raise unknown_name("configuration field", path_prefix + path, field_paths(type(config), path_prefix))
            section = section[parent]
        if not isinstance(section, dict):
            at = path_prefix + ".".join(parents)
            raise UserError(f"{path_prefix}{override}: {at} is {json.dumps(section)} and has no fields")
        value = text
        if not isinstance(section.get(name), str) or text.startswith('"'):
            with contextlib.suppress(json.JSONDecodeError):
                value = json.loads(text)
        if name == "name" and value != section.get(name):
            section.clear()
        section[name] = value
    return from_dict(type(config), values, path_prefix)


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
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else f"{path} is {old!r}, not {new!r}"
    keys = sorted({*old, *new})
    differences = (first_difference(old.get(key), new.get(key), f"{path}.{key}".lstrip(".")) for key in keys)
    return next(filter(None, differences), None)
