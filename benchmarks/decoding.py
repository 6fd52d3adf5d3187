"""Measures 4-beam decoding against transformers' `generate`: python benchmarks/decoding.py [--model DIR]

Both decode the same prompts with the same weights, in float32 on the CPU of this machine, in one process and in turn.
Both have a thread per core; `--devices` also splits our prompts over several CPU devices of JAX.
Prompts are embeddings, as in SALMONN, with the lengths of a prompt about a clip (88 audio tokens and a question). No
token ends an answer, so both decode the same number of tokens. transformers has its key-value cache and inference
mode. Compilation is timed apart. Prints new tokens per second of the best answers, for the fastest and the median of
some repetitions, their ratios, and how many answers are equal.

The model is a directory of a language model in the format of transformers; by default a LLaMA with random weights and
the sizes of SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import torch
import transformers
from jax.sharding import Mesh

import salmonn_jax
from salmonn_jax.config import GenerationConfig
from salmonn_jax.conversion import to_jax
from salmonn_jax.decoding.decoder import EmbeddedPrompts, decode
from salmonn_jax.decoding.options import decoding_options
from salmonn_jax.models.llama import Llama
from salmonn_jax.sharding import make_mesh, row_sharding

ROOT = pathlib.Path(__file__).parents[1]
TOKENIZER = ROOT / "tests" / "salmonn_mini_golden" / "vicuna" / "tokenizer.model"
SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def main() -> None:
    """Parses the command line, measures both and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, help="directory of a language model (default: random weights)")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=112, help="tokens of the longest prompt (default: 112)")
    parser.add_argument("--new-tokens", type=int, default=40, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--num-beams", type=int, default=4, help="beams (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of JAX (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="timed runs of each (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.batch_size % arguments.devices:
        parser.error(f"--batch-size {arguments.batch_size}: must be a multiple of --devices {arguments.devices}")
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    mesh = make_mesh({})
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = load_both(arguments.model, pathlib.Path(folder), mesh)
    embeddings, length = prompts(theirs, arguments.batch_size, arguments.prompt_tokens)
    config = GenerationConfig(num_beams=arguments.num_beams, max_new_tokens=arguments.new_tokens, compat="hf5")
    run_ours, compile_seconds = compiled(ours, embeddings, length, config, mesh)
    run_theirs = transformers_decoder(theirs, embeddings, length, config)
    our_ids, their_ids = run_ours(), run_theirs()  # also a warm-up
    our_seconds, their_seconds = [], []
    for _ in range(arguments.repetitions):  # in turn, so that other load on the machine meets both
        for run, seconds in ((run_ours, our_seconds), (run_theirs, their_seconds)):
            seconds.append(timed(run))
    tokens = arguments.batch_size * arguments.new_tokens
    print(
        f"{arguments.batch_size} prompts of up to {arguments.prompt_tokens} tokens, {arguments.new_tokens} new tokens, "
        f"{arguments.num_beams} beams, float32, {os.cpu_count()} cores, {arguments.devices} devices"
    )
    print(f"salmonn_jax: {summary(tokens, our_seconds)}, compiled in {compile_seconds:.1f} s")
    print(f"transformers {transformers.__version__}: {summary(tokens, their_seconds)}")
    ratios = [function(their_seconds) / function(our_seconds) for function in (min, statistics.median)]
    print(f"ratio: {ratios[0]:.2f} (fastest), {ratios[1]:.2f} (median)")
    print(f"equal answers: {(our_ids == their_ids).all(axis=1).sum()} of {arguments.batch_size}")


def summary(tokens: int, seconds: Sequence[float]) -> str:
    """Returns the tokens per second of the fastest and the median run."""
    fastest, median = min(seconds), statistics.median(seconds)
    return f"{tokens / fastest:.1f} tokens/s ({fastest:.2f} s; median of {len(seconds)}: {median:.2f} s)"


def load_both(directory: pathlib.Path | None, folder: pathlib.Path, mesh: Mesh) -> tuple[Any, Llama]:
    """Returns the language model as a transformers model and as ours; `folder` is for temporary files."""
    if directory is None:
        directory = folder / "random"
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMOLLM2_135M)).save_pretrained(directory)
        shutil.copy(TOKENIZER, directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    to_jax.write_model(to_jax.plan_component("llama", directory), folder / "converted")
    return theirs, salmonn_jax.load(folder / "converted", mesh=mesh, dtype="float32").module.llama


def prompts(model: Any, batch_size: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns embeddings float32[rows, seq, hidden] of random prompts, padded at the end, and their lengths."""
    rng = np.random.default_rng(0)
    length = longest - np.arange(batch_size) % 8
    ids = torch.tensor(rng.integers(3, model.config.vocab_size, (batch_size, longest)))
    with torch.inference_mode():
        embeddings = model.get_input_embeddings()(ids).numpy().copy()
    embeddings[np.arange(longest) >= length[:, None]] = 0
    return embeddings, length.astype(np.int32)


def compiled(
    llama: Llama, embeddings: np.ndarray, length: np.ndarray, config: GenerationConfig, mesh: Mesh
) -> tuple[Callable[[], np.ndarray], float]:
    """Returns our decoder of these prompts, which are split over the mesh, and the seconds of its compilation."""
    never = (llama.embedding.shape[0],)  # a token beyond the vocabulary
    options, numbers = decoding_options(config, stop_token_ids=never, start_token_id=None)
    batch = EmbeddedPrompts(
        embeddings, length, np.zeros((len(length), 2), np.uint32), has_audio=np.zeros(len(length), bool)
    )
    batch = jax.device_put(batch, row_sharding(mesh))
    start = time.perf_counter()
    decode_on_mesh = jax.jit(functools.partial(decode, options=options, mesh=mesh))
    run = decode_on_mesh.lower(llama, batch, numbers).compile()
    return lambda: np.asarray(run(llama, batch, numbers).tokens), time.perf_counter() - start


def transformers_decoder(
    model: Any, embeddings: np.ndarray, length: np.ndarray, config: GenerationConfig
) -> Callable[[], np.ndarray]:
    """Returns the decoder of transformers for these prompts, which are padded at the beginning."""
    torch.set_num_threads(os.cpu_count())
    shifts = embeddings.shape[1] - length
    left = np.stack([np.roll(row, shift, axis=0) for row, shift in zip(embeddings, shifts, strict=True)])
    mask = np.arange(embeddings.shape[1]) >= shifts[:, None]
    model.generation_config.eos_token_id = None
    inputs = {"inputs_embeds": torch.tensor(left), "attention_mask": torch.tensor(mask.astype(np.int64))}

    def run() -> np.ndarray:
        with torch.inference_mode():
            ids = model.generate(
                **inputs,
                num_beams=config.num_beams,
                max_new_tokens=config.max_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
        return ids.numpy()

    return run


def timed(run: Callable[[], np.ndarray]) -> float:
    """Returns the seconds of a run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
