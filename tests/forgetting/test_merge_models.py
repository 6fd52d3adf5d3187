"""Merging of model directories: checkpoints of the shared debug run, which have one base."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import salmonn_jax
from launch import cli, merge
from salmonn_jax import model_directory, weights
from salmonn_jax.errors import UserError
from salmonn_jax.forgetting.merging.adapters import Adapter
from salmonn_jax.forgetting.merging.arrays import merge_arrays
from salmonn_jax.forgetting.merging.plan import MergeOptions, plan_merge
from salmonn_jax.forgetting.merging.recipe import read_recipe
from salmonn_jax.forgetting.merging.sources import ModelSource
from salmonn_jax.forgetting.merging.write import write_merge
from salmonn_jax.paths import as_path

QUERY = "llama/layers/q_proj"


@pytest.fixture(scope="module")
def models(debug_run) -> dict[str, pathlib.Path]:
    """Three checkpoints of the debug run, by name."""
    return {name: debug_run / "checkpoints" / step for name, step in zip("abc", "246", strict=True)}


def run(folder, models, method, *, parameters=None, base=None, dtype="float32", given=None, **options) -> tuple:
    """Merges models and returns (directory, report).

    Args:
      folder: directory of the recipe and the output.
      models: paths of the models, by name.
      method: name of the method.
      parameters: parameters of the merge.
      base: path of the base.
      dtype: stored dtype.
      given: parameters of each model, by name.
      **options: fields of `MergeOptions`.
    """
    recipe = {
        "merge_method": method,
        "models": [{"model": str(path), "parameters": (given or {}).get(name, {})} for name, path in models.items()],
        "parameters": parameters or {},
        "dtype": dtype,
    }
    if base is not None:
        recipe["base_model"] = str(base)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merge.yml").write_text(yaml.safe_dump(recipe))
    plan = plan_merge(read_recipe(as_path(folder / "merge.yml")), as_path(folder), MergeOptions(**options))
    return folder / "out", write_merge(plan, as_path(folder / "out"))


def params(directory) -> dict[str, np.ndarray]:
    """Returns the weights of a model."""
    return {path: np.asarray(value) for path, value in model_directory.load_model(directory).params.items()}


def products(directory, path=QUERY) -> np.ndarray:
    """Returns what the adapters of a projection add to its kernels, float32[layers, in, out]."""
    source = ModelSource(as_path(directory))
    loaded = params(directory)
    return source.scale * loaded[path + "/lora_a"] @ loaded[path + "/lora_b"]


def test_one_model_at_weight_one_comes_back_byte_for_byte(models, tmp_path):
    output, report = run(tmp_path, {"a": models["a"]}, "linear", parameters={"weight": 1.0})
    ours, theirs = params(output), params(models["a"])
    assert ours.keys() == theirs.keys()
    assert all(ours[path].tobytes() == theirs[path].tobytes() for path in theirs)
    assert model_directory.read_model_config(output) == model_directory.read_model_config(models["a"])
    assert report["rank"] == 4 and json.loads((output / "merge.json").read_text()) == report


def test_weight_zero_gives_the_base_byte_for_byte(models, tmp_path):
    output, _ = run(tmp_path, {"b": models["b"]}, "task_arithmetic", parameters={"weight": 0.0}, base=models["a"])
    ours, theirs = params(output), params(models["a"])
    assert all(ours[path].tobytes() == theirs[path].tobytes() for path in theirs)


def test_concatenated_adapters_are_the_sum_of_products(models, tmp_path):
    given = {"a": {"weight": 0.7}, "b": {"weight": 0.3}, "c": {"weight": -0.2}}
    output, report = run(tmp_path, models, "task_arithmetic", given=given, parameters={"lambda": 0.5})
    expected = 0.5 * sum(given[name]["weight"] * products(path) for name, path in models.items())
    np.testing.assert_allclose(products(output), expected, atol=1e-6)
    assert report["rank"] == 12 and report["options"]["lora"] == "concat"
    kernel = "qformer/layers/intermediate/kernel"
    base = np.asarray(model_directory.open_model(models["a"]).base and params_of_base(models["a"])[kernel])
    moved = base + 0.5 * sum(given[name]["weight"] * (params(path)[kernel] - base) for name, path in models.items())
    np.testing.assert_allclose(params(output)[kernel], moved, atol=1e-6)


def params_of_base(directory) -> dict[str, np.ndarray]:
    """Returns the weights before any training."""
    return {path: x.read() for path, x in weights.open_params(model_directory.open_model(directory).base.path).items()}


def test_a_base_with_adapters_takes_part(models, tmp_path):
    output, report = run(tmp_path, {"b": models["b"]}, "wise_ft", parameters={"alpha": 0.25}, base=models["a"])
    expected = 0.75 * products(models["a"]) + 0.25 * products(models["b"])
    np.testing.assert_allclose(products(output), expected, atol=1e-6)
    assert report["rank"] == 8


def test_wise_ft_of_the_adapters_is_the_lora_multiplier(models, tmp_path):
    output, report = run(tmp_path, {"c": models["c"]}, "wise_ft", parameters={"alpha": 0.5}, only="_proj")
    assert report["rank"] == 4
    np.testing.assert_allclose(products(output), 0.5 * products(models["c"]), atol=1e-7)
    whole = ModelSource(as_path(output))
    assert whole.scale == ModelSource(as_path(models["c"])).scale


def test_what_is_not_selected_is_byte_equal_to_the_base(models, tmp_path):
    pair = {"b": models["b"], "c": models["c"]}
    output, report = run(
        tmp_path, pair, "ties", parameters={"weight": 1.0}, base=models["a"], only="^qformer/layers/1/"
    )
    ours, theirs = params(output), params(models["a"])
    changed = {path for path in theirs if ours[path].tobytes() != theirs[path].tobytes()}
    assert changed and all(path.startswith("qformer/layers/") for path in changed)
    for path in changed:
        np.testing.assert_array_equal(ours[path][0], theirs[path][0])
    assert set(report["units"]) == {"qformer"}


@pytest.mark.parametrize("method", ["ties", "dare_ties", "breadcrumbs", "della"])
def test_dense_products_are_merged_entry_by_entry(models, method, tmp_path):
    pair = {"a": models["a"], "c": models["c"]}
    options = {"density": 0.5, "weight": 0.6}
    output, _ = run(tmp_path, pair, method, parameters=options)
    layers = [products(models[name]) for name in pair]
    ours, base = params(output), params_of_base(models["a"])
    assert not ours[QUERY + "/lora_b"].any()
    for layer in range(2):
        arrays = {"base": 0 * layers[0][0]} | {name: x[layer] for name, x in zip("ac", layers, strict=True)}
        kernel = ours[QUERY + "/kernel"][layer] - base[QUERY + "/kernel"][layer]
        if method in ("ties", "breadcrumbs"):  # the others draw by the name of the tensor
            np.testing.assert_allclose(kernel, merge_arrays(method, arrays, "base", options), atol=1e-6)
        assert np.abs(kernel).max() > 0


def test_recompression_has_the_error_of_the_singular_values_left_out(models, tmp_path):
    parameters = {"weight": 0.5, "normalize": False}
    output, report = run(tmp_path, models, "linear", parameters=parameters, lora="svd", svd_rank=2)
    exact = 0.5 * sum(map(products, models.values()))
    singular = np.linalg.svd(exact.astype(np.float64), compute_uv=False)
    lost = np.linalg.norm(singular[:, 2:], axis=-1) / np.linalg.norm(singular, axis=-1)
    found = np.linalg.norm(products(output) - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
    np.testing.assert_allclose(found, lost, atol=1e-5)
    assert report["rank"] == 2 and report["recompression"]["largest"] >= lost.max() - 1e-6
    assert model_directory.read_model_config(output).lora.rank == 2
    dense, _ = run(tmp_path / "ties", models, "ties", parameters={"weight": 1.0, "density": 0.4})
    again, _ = run(
        tmp_path / "whole", models, "ties", parameters={"weight": 1.0, "density": 0.4}, lora="svd", svd_rank=32
    )
    kernel = params(dense)[QUERY + "/kernel"] - params_of_base(models["a"])[QUERY + "/kernel"]
    np.testing.assert_allclose(products(again), kernel, atol=1e-6)


def test_a_merged_model_answers(models, tmp_path):
    output, _ = run(tmp_path, models, "linear", parameters={"weight": 1.0})
    (answer,) = salmonn_jax.load(output).generate(None, "What is this?", num_beams=1, max_new_tokens=4)
    (of_one,) = salmonn_jax.load(models["a"]).generate(None, "What is this?", num_beams=1, max_new_tokens=4)
    assert np.isfinite(answer.score) and answer.score != of_one.score


def test_values_by_layer_and_by_filter(models, tmp_path):
    alpha = [{"filter": "q_proj", "value": [0.0, 1.0]}, {"value": 0.5}]
    output, _ = run(tmp_path, {"c": models["c"]}, "wise_ft", parameters={"alpha": alpha}, only="_proj")
    merged, whole = products(output), products(models["c"])
    assert not merged[0].any()
    np.testing.assert_allclose(merged[1], whole[1], atol=1e-7)
    value = "llama/layers/v_proj"
    np.testing.assert_allclose(products(output, value), 0.5 * products(models["c"], value), atol=1e-7)


def test_the_paper_trims_over_the_whole_model(models, tmp_path):
    parameters = {"weight": 1.0, "density": 0.1}
    output, _ = run(tmp_path, {"c": models["c"]}, "ties", parameters=parameters, compat="paper")
    base, whole, merged = params_of_base(models["c"]), params(models["c"]), params(output)
    deltas, kept = [], 0
    for path in ModelSource(as_path(models["c"])).delta:
        if path.endswith("lora_a"):
            path = path.removesuffix("/lora_a")
            deltas.append(np.abs(products(models["c"], path)).reshape(-1))
            kept += np.count_nonzero(merged[path + "/kernel"] != base[path + "/kernel"])
        elif not path.endswith("lora_b"):
            deltas.append(np.abs(whole[path] - base[path]).reshape(-1))
            kept += np.count_nonzero(merged[path] != base[path])
    size = sum(x.size for x in deltas)
    threshold = np.sort(np.concatenate(deltas))[-int(0.1 * size)]
    assert kept == pytest.approx(0.1 * size, rel=0.01)
    changed = np.abs(merged["projection/kernel"] - base["projection/kernel"])
    assert (changed[changed > 0] >= threshold * (1 - 1e-4)).all()


def test_a_small_merge_vanishes_in_bfloat16_with_a_warning(models, tmp_path):
    parameters = {"weight": 0.001, "normalize": False}
    _, report = run(
        tmp_path, {"a": models["a"]}, "task_arithmetic", parameters=parameters, dtype="bfloat16", only="^qformer"
    )
    assert report["rounding"]["lost"] > 0.5
    assert report["warnings"] and "store the result with dtype: float32" in report["warnings"][0]


def altered(source, folder, change) -> pathlib.Path:
    """Returns a model directory with the delta of `source` after `change`, and with its base."""
    loaded = model_directory.open_model(source)
    delta = {path: np.asarray(x.read()) for path, x in weights.open_params(loaded.delta_path).items()}
    change(delta)
    folder.mkdir()
    weights.save(as_path(folder / "delta"), jax.tree.map(jnp.asarray, delta))
    run_dir = model_directory.config_dir(source)
    model_directory.write_config_and_tokenizer(as_path(folder), loaded.config, loaded.base, run_dir)
    return folder


def test_models_that_do_not_fit_are_refused_before_anything_is_written(models, debug_run, tmp_path):
    def refused(pair, message, method="linear", parameters=None, **options):
        with pytest.raises(UserError, match=message):
            run(tmp_path / "merge", pair, method, parameters=parameters or {"weight": 1.0}, **options)
        assert not (tmp_path / "merge" / "out").exists()

    good = models["a"]
    nan = altered(good, tmp_path / "nan", lambda delta: delta["projection/bias"].__setitem__(3, np.nan))
    refused({"a": good, "nan": nan}, r"nan has values at projection/bias that are not finite")
    base = params_of_base(good)
    same = altered(good, tmp_path / "same", lambda delta: delta.update({path: base[path] for path in delta}))
    refused({"a": good, "same": same}, r"same equals the base: there is nothing to merge; leave it out")
    less = altered(
        good, tmp_path / "less", lambda delta: [delta.pop(p) for p in list(delta) if p.startswith("qformer")]
    )
    refused(
        {"a": good, "less": less}, r"checkpoints/2 trains qformer/layers/0/attention/dense/bias and \d+ more, which"
    )
    run(tmp_path / "fits", {"a": good, "less": less}, "linear", parameters={"weight": 1.0}, only="_proj|^projection")
    refused({"a": good}, "nothing that --only 'xyz' matches", only="xyz")
    refused({"a": good}, r"--only '\(' is no regular expression", only="(")
    refused({"a": good, "b": models["b"]}, "ties is no weighted sum of adapters", "ties", lora="concat")
    refused({"a": good}, "--svd-rank: concat adapters are not recompressed; add --lora svd", svd_rank=3)
    refused({"a": tmp_path / "absent"}, "absent is not a directory")

    frozen = shutil.copytree(debug_run, tmp_path / "frozen")
    other = {path: np.asarray(x.read()) for path, x in weights.open_params(frozen / "base").items()}
    other["llama/norm/scale"] = other["llama/norm/scale"] + 1
    shutil.rmtree(frozen / "base")
    described = json.loads((frozen / "config.json").read_text())
    described["base"]["fingerprint"] = model_directory.save_base(
        as_path(frozen), jax.tree.map(jnp.asarray, other)
    ).fingerprint
    (frozen / "config.json").write_text(json.dumps(described))
    refused({"a": good, "b": frozen / "checkpoints" / "4"}, r"has another base than .*: llama/norm/scale differs")
    described["model"]["qformer"]["second_stride"] = 0.5
    (frozen / "config.json").write_text(json.dumps(described))
    refused({"a": good, "b": frozen / "checkpoints" / "4"}, r"is another model than .*second_stride is")


def test_a_base_that_was_made_again_is_compared_by_its_frozen_weights(models, debug_run, tmp_path):
    again = shutil.copytree(debug_run, tmp_path / "again")
    base = {path: np.asarray(x.read()) for path, x in weights.open_params(again / "base").items()}
    base["projection/bias"] = base["projection/bias"] + 1  # new weights that training replaces
    shutil.rmtree(again / "base")
    described = json.loads((again / "config.json").read_text())
    described["base"]["fingerprint"] = model_directory.save_base(
        as_path(again), jax.tree.map(jnp.asarray, base)
    ).fingerprint
    (again / "config.json").write_text(json.dumps(described))
    pair = {"a": models["a"], "b": again / "checkpoints" / "4"}
    output, _ = run(tmp_path, pair, "linear", parameters={"weight": 1.0})
    expected = (params(models["a"])["projection/bias"] + params(models["b"])["projection/bias"]) / 2
    np.testing.assert_allclose(params(output)["projection/bias"], expected, atol=1e-6)


def test_the_command(models, tmp_path, monkeypatch, capsys):
    recipe = {"merge_method": "linear", "models": [{"model": str(models["a"]), "parameters": {"weight": 1.0}}]}
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(recipe))
    words = ["merge", str(tmp_path / "merge.yml"), str(tmp_path / "out"), "--only", "_proj"]
    monkeypatch.setattr("sys.argv", words)
    cli.run(merge.main)
    shown = capsys.readouterr().out
    assert "linear of 1 models" in shown and "adapters: concat, rank 4" in shown and "merged: " in shown
    with pytest.raises(SystemExit) as refused:
        cli.run(merge.main)
    assert refused.value.code == 2 and "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: tis\nmodels: [{model: a}]", "unknown merge_method 'tis'; did you mean 'ties'?"),
        (
            "merge_method: linear\nmodels: [{model: a, parameters: {weight: x}}]",
            'models.0.parameters.weight="x": must be',
        ),
        (
            "merge_method: linear\nmodels: [{model: a, parameters: {density: 1}}]",
            "models[0].parameters.density: linear",
        ),
        ("merge_method: linear\nmodels: [{model: a}]\nslices: []", "unknown configuration field 'slices'"),
        ("merge_method: ties\nmodels: [{model: a}]\nparameters: {int8_mask: true}", "unknown configuration field"),
        (
            "merge_method: slerp\nmodels: [{model: a}]\nparameters: {t: 0.5}",
            "base_model: slerp with one model needs it",
        ),
        (
            "merge_method: wise_ft\nmodels: [{model: a}, {model: b}]\nparameters: {alpha: 1}",
            "models: wise_ft merges exac",
        ),
        ("merge_method: linear\nmodels: []", "models=[]"),
        ("merge_method: linear\nmodels: [{model: a}]\ndtype: int8", 'dtype="int8": must be'),
        ("merge_method: [", "merge.yml is not YAML: while parsing"),
        ("- 3", "merge.yml is not a YAML mapping"),
    ],
)
def test_wrong_recipes_are_one_line(text, message, tmp_path):
    (tmp_path / "merge.yml").write_text(text)
    with pytest.raises(UserError) as refused:
        read_recipe(as_path(tmp_path / "merge.yml"))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(UserError, match="does not exist"):
        read_recipe(as_path(tmp_path / "absent.yml"))


def test_an_adapter_is_its_scaled_product():
    adapter = Adapter(np.eye(2, dtype=np.float32), np.full((2, 3), 2.0, np.float32), 0.5)
    np.testing.assert_array_equal(adapter.product, np.ones((2, 3)))
    assert dataclasses.replace(adapter, scale=1.0).product[0, 0] == 2
