"""Presets as command lines name them: with overrides, and with the model of --model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from salmonn_jax.configs.preset import Preset
    from salmonn_jax.paths import Path


def resolve_preset(name: str, overrides: list[str], model_dir: Path | None = None) -> Preset:
    """Returns the named preset with overrides applied, and with the architecture of `model_dir`, if it is given.

    Args:
      name: name of a preset.
      overrides: `field=value` for fields of the recipe, and `model.field=value` for fields of the model. With
        `model_dir`, only those of the model's fields that matter in training alone can be changed.
      model_dir: model or run directory.

    Raises:
      UserError: the preset or a field is unknown, or a value is not valid.
    """
    from salmonn_jax.config import MUTABLE_MODEL_FIELDS, apply_overrides
    from salmonn_jax.configs import get_preset
    from salmonn_jax.configs.preset import Preset
    from salmonn_jax.errors import UserError

    preset = get_preset(name)
    model = preset.model
    if model_dir is not None:
        from salmonn_jax.model_directory import read_model_config

        model = read_model_config(model_dir)
    of_model = [text.removeprefix("model.") for text in overrides if text.startswith("model.")]
    if model is None and of_model:
        raise UserError(f"model.{of_model[0]}: {name} names no model; give one with --model MODEL")
    fixed = [text for text in of_model if text.partition("=")[0] not in MUTABLE_MODEL_FIELDS]
    if model_dir is not None and fixed:
        mutable = " and ".join(f"model.{field}" for field in MUTABLE_MODEL_FIELDS)
        raise UserError(f"model.{fixed[0]}: is fixed by the model in {model_dir}; only {mutable} can be changed")
    recipe = apply_overrides(preset.recipe, [text for text in overrides if not text.startswith("model.")])
    return Preset(name, recipe, apply_overrides(model, of_model, path_prefix="model.") if of_model else model)


def require_model(preset: Preset) -> Preset:
    """Returns the preset. Raises UserError if it names no model."""
    from salmonn_jax.errors import UserError

    if preset.model is None:
        raise UserError(f"{preset.name} is a recipe for any model; give one with --model MODEL")
    return preset


def print_config(preset: Preset) -> None:
    """Prints the path, value and meaning of every field. Fields of absent parts are left out."""
    import json

    from salmonn_jax.config import describe_fields

    for config, prefix in ((preset.recipe, ""), (preset.model, "model.")):
        if config is not None:
            for path, value, description in describe_fields(config, prefix):
                print(f"{path} = {json.dumps(value)}  # {description}")
