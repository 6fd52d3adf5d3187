"""Convert checkpoints: python -m launch.convert to-jax salmonn --whisper DIR --beats FILE --llm DIR --output MODEL

--checkpoint FILE adds the original's .pth; without it the model's trained parts are newly drawn. What its tensors
cannot tell is taken from the flags, else from the configuration inside the file, else it is the original's default.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from launch import cli

_SOURCE_HELP = {
    "whisper": "Hugging Face directory or OpenAI .pt file",
    "beats": "BEATs .pt file",
    "llama": "Hugging Face directory of the LLaMA family",
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    _add_to_jax(verbs.add_parser("to-jax", help="from PyTorch to a model directory"))
    _add_to_torch(verbs.add_parser("to-torch", help="from a model or run directory to PyTorch"))
    inspect = verbs.add_parser("inspect", help="what a file or directory holds, and what would be left out and why")
    inspect.add_argument("path", type=pathlib.Path, metavar="FILE")
    inspect.set_defaults(run=inspect_checkpoint)
    _add_compare(verbs.add_parser("compare", help="a converted model beside its files in PyTorch, layer by layer"))
    options = parser.parse_args(argv)
    options.run(options)


def _add_to_jax(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True)
    salmonn = kinds.add_parser("salmonn", help="a whole SALMONN from its parts")
    salmonn.add_argument("--whisper", required=True, type=pathlib.Path, metavar="DIR", help=_SOURCE_HELP["whisper"])
    salmonn.add_argument(
        "--beats",
        type=pathlib.Path,
        metavar="FILE",
        help=f"{_SOURCE_HELP['beats']}; without, it hears through Whisper alone",
    )
    salmonn.add_argument("--llm", required=True, type=pathlib.Path, metavar="DIR", help=_SOURCE_HELP["llama"])
    salmonn.add_argument("--checkpoint", type=pathlib.Path, metavar="FILE", help="SALMONN .pth file")
    salmonn.add_argument("--qformer-heads", type=int, metavar="N")
    salmonn.add_argument("--second-per-window", type=float, metavar="SECONDS")
    salmonn.add_argument("--second-stride", type=float, metavar="SECONDS")
    salmonn.add_argument("--lora-alpha", type=float, metavar="ALPHA")
    salmonn.add_argument(
        "--audio-tokens",
        choices=("window", "clip"),
        default="window",
        help="which the language model reads: of the whole window, as the original; or, to train anew, of the clip",
    )
    salmonn.add_argument(
        "--own-checkpoint", action="store_true", help="the checkpoint is not a released one: its LLM may be any"
    )
    salmonn.set_defaults(run=to_jax_salmonn)
    for kind, flag in (("whisper", "--whisper"), ("beats", "--beats"), ("llama", "--llm")):
        part = kinds.add_parser(kind, help=f"this part alone, from a {_SOURCE_HELP[kind]}")
        part.add_argument(flag, required=True, type=pathlib.Path, dest="path", help=_SOURCE_HELP[kind])
        part.set_defaults(run=to_jax_component)
    for kind in kinds.choices.values():
        kind.add_argument("--output", required=True, type=pathlib.Path, metavar="MODEL", help="directory to write")


def _add_to_torch(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, run, help in (
        ("salmonn", to_torch, "the original's .pth, with all that it trains"),
        ("peft", to_torch, "a PEFT directory, with the adapters alone"),
        ("llama", to_torch_llama, "a Hugging Face directory of the language model, its adapters merged into it"),
    ):
        verb = kinds.add_parser(kind, help=help)
        verb.add_argument("--model", required=True, type=pathlib.Path, help="model or run directory")
        verb.add_argument("--output", required=True, type=pathlib.Path, help="file or directory to write")
        verb.set_defaults(run=run)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=pathlib.Path, help="what was converted")
    parser.add_argument("--whisper", type=pathlib.Path, metavar="DIR", help="from this directory or .pt file")
    parser.add_argument("--beats", type=pathlib.Path, metavar="FILE", help="and this file")
    parser.add_argument("--llm", type=pathlib.Path, metavar="DIR", help="and this Hugging Face directory")
    parser.add_argument("--checkpoint", type=pathlib.Path, metavar="FILE", help="and this SALMONN .pth")
    parser.add_argument("--prompt", default="Describe the audio.", help="question (default: %(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="relative difference that is let pass (default: %(default)s)"
    )
    parser.add_argument("clip", metavar="CLIP", help="audio file")
    parser.set_defaults(run=compare)


def to_torch(arguments: argparse.Namespace) -> None:
    """Writes what was trained in the form that was asked for."""
    from salmonn_jax.conversion import to_torch

    write = {"salmonn": to_torch.write_salmonn_checkpoint, "peft": to_torch.write_peft_adapter}[arguments.kind]
    write(arguments.model, arguments.output)
    print(f"wrote {arguments.output}")


def to_torch_llama(arguments: argparse.Namespace) -> None:
    """Writes the language model, with a bar: it may be large."""
    from salmonn_jax.conversion import to_torch

    with _bar(to_torch.llama_bytes(arguments.model), arguments.output) as bar:
        to_torch.write_hf_llama(arguments.model, arguments.output, bar.update)
    print(f"wrote {arguments.output}")


def inspect_checkpoint(arguments: argparse.Namespace) -> None:
    """Prints what a checkpoint is."""
    from salmonn_jax.conversion import inspection

    for line in inspection.describe_checkpoint(arguments.path):
        print(line)


def compare(arguments: argparse.Namespace) -> None:
    """Prints how far each stage lies from PyTorch's, and names the first that parts; exit code 1 if one does."""
    import warnings

    from salmonn_jax.conversion import compare

    warnings.simplefilter("ignore")  # of the packages, among themselves
    files = compare.CheckpointPaths(
        whisper=arguments.whisper, beats=arguments.beats, llm=arguments.llm, checkpoint=arguments.checkpoint
    )
    first = None
    print(f"{'stage':24} {'relative':>10} {'largest':>10}")
    for found in compare.compare(arguments.model, files, arguments.clip, arguments.prompt):
        parts = not found.relative_error <= arguments.tolerance  # what is not a number parts too
        print(
            f"{found.layer:24} {found.relative_error:10.1e} {found.max_abs_error:10.1e}{' <- parts' if parts else ''}"
        )
        first = first or (found if parts else None)
    if first is None:
        print(f"all stages agree within {arguments.tolerance:g}")
        return
    print(
        f"the first stage that parts is {first.layer}: {first.relative_error:.1e} relative, "
        f"{first.max_abs_error:.1e} at most"
    )
    sys.exit(1)


def to_jax_component(arguments: argparse.Namespace) -> None:
    """Converts one part."""
    from salmonn_jax.conversion import to_jax

    _execute_plan(to_jax.plan_component(arguments.kind, arguments.path), arguments.output)


def to_jax_salmonn(arguments: argparse.Namespace) -> None:
    """Converts a whole SALMONN."""
    from salmonn_jax.conversion import to_jax

    options = to_jax.SalmonnOptions(
        heads=arguments.qformer_heads,
        window_seconds=arguments.second_per_window,
        stride_seconds=arguments.second_stride,
        lora_alpha=arguments.lora_alpha,
        audio_tokens=arguments.audio_tokens,
    )
    plan = to_jax.plan_salmonn(
        arguments.whisper,
        arguments.beats,
        arguments.llm,
        arguments.checkpoint,
        options,
        own_checkpoint=arguments.own_checkpoint,
    )
    _execute_plan(plan, arguments.output)


def _execute_plan(plan: Any, output: pathlib.Path) -> None:
    """Tells what was chosen and what is left out, and writes."""
    from salmonn_jax.conversion import to_jax
    from salmonn_jax.model_directory import TOKENIZER_FILES

    for name, (value, origin) in plan.resolved_options.items():
        print(f"{name}: {value} (from {origin})", file=sys.stderr)
    for name, why in plan.ignored.items():
        print(f"not needed: {name} ({why})", file=sys.stderr)
    if plan.tokenizer_dir and not any((plan.tokenizer_dir / name).is_file() for name in TOKENIZER_FILES):
        print(f"{plan.tokenizer_dir} has no tokenizer: put its files into {output} before you use it", file=sys.stderr)
    with _bar(plan.nbytes, output) as bar:
        to_jax.write_model(plan, output, bar.update)
    print(f"wrote {output}")


def _bar(total: int, output: pathlib.Path) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, desc=str(output))


if __name__ == "__main__":
    cli.run(main)
