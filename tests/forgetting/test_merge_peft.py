"""Merging of PEFT adapter directories, compared with PEFT itself where it is right."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import yaml

from salmonn_jax.conversion.formats import tensors
from salmonn_jax.errors import UserError
from salmonn_jax.forgetting.merging.plan import MergeOptions, plan_merge
from salmonn_jax.forgetting.merging.recipe import read_recipe
from salmonn_jax.forgetting.merging.write import write_merge
from salmonn_jax.paths import as_path
from tests import torch_checkpoints

SHAPES = {"q_proj": (24, 16), "v_proj": (12, 16)}  # (out, in)
MODULES = [f"model.layers.{layer}.self_attn.{name}" for layer in range(3) for name in SHAPES]


def write_adapter(directory: pathlib.Path, seed: int, *, rank=4, ranks=None, names=MODULES, **config) -> pathlib.Path:
    """Writes a random PEFT adapter.

    Args:
      directory: directory that is made.
      seed: seed of the values.
      rank: rank of modules that `ranks` does not name.
      ranks: rank by module.
      names: names of the modules.
      **config: further keys of adapter_config.json.
    """
    from safetensors.numpy import save_file

    rng, values = np.random.default_rng(seed), {}
    for module in names:
        rows, columns = SHAPES[module.rsplit(".", 1)[-1]]
        own = (ranks or {}).get(module, rank)
        values[f"base_model.model.{module}.lora_A.weight"] = rng.normal(size=(own, columns)).astype(np.float32)
        values[f"base_model.model.{module}.lora_B.weight"] = rng.normal(size=(rows, own)).astype(np.float32)
    directory.mkdir(parents=True)
    save_file(values, directory / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": list(SHAPES), "bias": "none"}
    described |= {"rank_pattern": ranks or {}, "base_model_name_or_path": "some/llm", "init_lora_weights": True}
    (directory / "adapter_config.json").write_text(json.dumps(described | config))
    return directory


def merge(folder, adapters, method="linear", **parameters) -> pathlib.Path:
    """Merges adapters and returns the directory of the result. `options` among the parameters are `MergeOptions`."""
    options = parameters.pop("options", {})
    recipe = {"merge_method": method, "models": [{"model": str(path)} for path in adapters], "parameters": parameters}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merge.yml").write_text(yaml.safe_dump(recipe))
    plan = plan_merge(read_recipe(as_path(folder / "merge.yml")), as_path(folder), MergeOptions(**options))
    write_merge(plan, as_path(folder / "out"))
    return folder / "out"


def products(directory) -> dict[str, np.ndarray]:
    """Returns scale * B @ A of each module, with the scale that PEFT gives it."""
    config = json.loads((directory / "adapter_config.json").read_text())
    stored = tensors.open_state_dict(directory / "adapter_model.safetensors")
    found = {}
    for name in stored:
        if name.endswith("lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            a, b = stored[name].read(), stored[name.replace("lora_A", "lora_B")].read()
            rank = config.get("rank_pattern", {}).get(module, config["r"])
            assert a.shape[0] == rank
            alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
            found[module] = alpha / (rank**0.5 if config.get("use_rslora") else rank) * b @ a
    return found


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"ranks": {MODULES[2]: 7, MODULES[5]: 2}}], ids=str)
def test_one_adapter_at_weight_one_comes_back(config, tmp_path):
    """peft #3761: PEFT's own merge of one adapter changes it with rsLoRA; #3737: rank patterns cannot be read again."""
    adapter = write_adapter(tmp_path / "adapter", 0, **config)
    output = merge(tmp_path, [adapter], weight=1.0)
    ours, theirs = (tensors.open_state_dict(x / "adapter_model.safetensors") for x in (output, adapter))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].read().tobytes() == theirs[name].read().tobytes() for name in theirs)
    ours, theirs = products(output), products(adapter)
    for module in theirs:
        np.testing.assert_allclose(ours[module], theirs[module], rtol=1e-6)
    again = merge(tmp_path / "again", [output], weight=1.0)  # what was written can be read
    for module, product in products(again).items():
        np.testing.assert_allclose(product, theirs[module], rtol=1e-6)


def test_merged_adapters_have_no_cross_terms(tmp_path):
    """peft #3013: averaging A and B on their own multiplies A of one adapter with B of another."""
    one = write_adapter(tmp_path / "one", 1)
    two = write_adapter(tmp_path / "two", 2, rank=3, lora_alpha=5, use_rslora=True)
    output = merge(tmp_path, [one, two], weight=1.0, normalize=False)
    expected = {module: products(one)[module] + products(two)[module] for module in MODULES}
    for module, product in products(output).items():
        np.testing.assert_allclose(product, expected[module], rtol=1e-5, atol=1e-5)
    small = merge(tmp_path / "svd", [one, two], weight=1.0, normalize=False, options={"lora": "svd", "svd_rank": 7})
    for module, product in products(small).items():
        np.testing.assert_allclose(product, expected[module], rtol=1e-4, atol=1e-4)
    separate = (one_half(one, "A") + one_half(two, "A", 4), one_half(one, "B") + one_half(two, "B", 4))
    assert np.abs(separate[1] @ separate[0] - expected[MODULES[0]]).max() > 1  # what the test would catch


def one_half(directory, letter, rank=4) -> np.ndarray:
    """Returns A or B of the first module, with zeros up to a rank."""
    value = tensors.open_state_dict(directory / "adapter_model.safetensors")
    value = value[f"base_model.model.{MODULES[0]}.lora_{letter}.weight"].read()
    axis = 0 if letter == "A" else 1
    missing = [(0, rank - size if i == axis else 0) for i, size in enumerate(value.shape)]
    return np.pad(value, missing)


def test_peft_loads_what_is_written(tmp_path):
    torch_checkpoints.require_packages("peft")
    import peft
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
    )
    llm = transformers.LlamaForCausalLM(config).eval()
    llm.save_pretrained(tmp_path / "llm")
    one = write_adapter(tmp_path / "one", 1, ranks={MODULES[1]: 6})
    two = write_adapter(tmp_path / "two", 2, use_rslora=True)

    def logits(directory):
        base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "llm")
        with torch.no_grad():
            return peft.PeftModel.from_pretrained(base, directory).eval()(torch.arange(8)[None]).logits.numpy()

    back = merge(tmp_path / "back", [two], weight=1.0)
    np.testing.assert_allclose(logits(back), logits(two), atol=1e-4)
    both = merge(tmp_path / "both", [one, two], weight=0.5, normalize=False)
    kernels = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "llm")
    with torch.no_grad():
        for module in MODULES:
            kernel = kernels.get_submodule(module).weight
            kernel += torch.from_numpy(0.5 * (products(one)[module] + products(two)[module]))
        expected = kernels(torch.arange(8)[None]).logits.numpy()
    np.testing.assert_allclose(logits(both), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "has use_dora=True: this variant of LoRA cannot be merged; use plain LoRA"),
        ({"lora_bias": True}, "has lora_bias=True"),
        ({"bias": "all"}, "has bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save="),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights='pissa'"),
        ({"layer_replication": [[0, 1]]}, "has layer_replication="),
        ({"some_new_variant": {"x": 1}}, "has some_new_variant="),
        ({"peft_type": "IA3"}, "is a PEFT adapter of type IA3; only LORA can be merged"),
        ({"r": 0}, "has r=0: must be a number above 0"),
        ({"rank_pattern": {"q_proj": 3}}, r"has rank 4 at .*q_proj, and its adapter_config.json says 3"),
    ],
)
def test_other_variants_are_refused(config, message, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", 0, **config)
    with pytest.raises(UserError, match=message):
        merge(tmp_path, [adapter], weight=1.0)
    assert not (tmp_path / "out").exists()


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    one, less = write_adapter(tmp_path / "one", 0), write_adapter(tmp_path / "less", 1, names=MODULES[:3])
    with pytest.raises(
        UserError, match=r"one trains model\.layers\.1\.self_attn\.v_proj and 2 more, which .*less does not"
    ):
        merge(tmp_path, [one, less], weight=1.0)
    with pytest.raises(UserError, match="PEFT adapters have no kernels"):
        merge(tmp_path, [one], weight=1.0, options={"lora": "dense"})
    (one / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        merge(tmp_path, [one, less], weight=1.0)
