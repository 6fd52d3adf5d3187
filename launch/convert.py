"""Convert checkpoints: python -m launch.convert to-jax salmonn --whisper DIR --beats FILE --llm DIR --output MODEL

--checkpoint FILE adds the original's .pth. Without it, the result is a model to be trained: Q-Former, projection and
adapters get random values. Settings that the tensors do not determine are taken from the options, then from the
configuration in FILE, then from the defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from launch import cli
from salmonn_jax.files import refuse_existing

if TYPE_CHECKING:
    from salmonn_jax.paths import Path

_SETTINGS_HELP = """The defaults are those of the original. A model to be trained (no --checkpoint) differs in this:
its Q-Former is not wider than the LLM (hidden size: the largest multiple of 64 up to the LLM's, at most 768; heads of
64; feed-forward of 4 times the hidden size), alpha is 4 times the rank, the loss has no [PAD] class, and the prompt
template is the chat template of the LLM, if it has one. What was chosen is printed."""
_SOURCE_HELP = {
    "whisper": "Hugging Face directory or OpenAI .pt file",
    "beats": "BEATs .pt file",
    "llama": "Hugging Face directory of a LLaMA, Vicuna, SmolLM2, Mistral, Qwen2.5 or Qwen3",
}


def main(argv: list[str] | None = None) -> None:
    """Parses the command line and runs the chosen subcommand.

    Args:
      argv: command-line arguments; None for `sys.argv[1:]`.

    Raises:
      UserError: the command line, a checkpoint or a model is not valid, or the output exists.
    """
    parser = cli.make_parser("convert", __doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    _add_to_jax(verbs.add_parser("to-jax", help="convert PyTorch checkpoints to a model directory"))
    _add_to_torch(verbs.add_parser("to-torch", help="convert a model or run directory to PyTorch"))
    inspect = verbs.add_parser("inspect", help="list the tensors of a checkpoint and those a conversion ignores")
    inspect.add_argument("path", type=cli.local_path, metavar="PATH", help="checkpoint file or Hugging Face directory")
    _add_verbose(inspect)
    inspect.set_defaults(run=run_inspect)
    _add_compare(verbs.add_parser("compare", help="compare a converted model with PyTorch, layer by layer"))
    options = parser.parse_args(argv)
    if "output" in options:  # before anything is read or printed
        refuse_existing(options.output)
    options.run(options)


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    """Adds the option --verbose."""
    parser.add_argument("--verbose", action="store_true", help="list each ignored tensor, not only how many there are")


def _add_to_jax(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `to-jax`."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    salmonn = kinds.add_parser("salmonn", help="a whole SALMONN from its checkpoints")
    salmonn.add_argument("--whisper", required=True, type=cli.local_path, metavar="DIR", help=_SOURCE_HELP["whisper"])
    salmonn.add_argument(
        "--beats",
        type=cli.local_path,
        metavar="FILE",
        help=f"{_SOURCE_HELP['beats']}; omit it for a model whose only encoder is Whisper",
    )
    salmonn.add_argument("--llm", required=True, type=cli.local_path, metavar="DIR", help=_SOURCE_HELP["llama"])
    salmonn.add_argument("--checkpoint", type=cli.local_path, metavar="FILE", help="SALMONN .pth file")
    _add_settings(salmonn)
    salmonn.add_argument(
        "--own-checkpoint",
        action="store_true",
        help="the checkpoint is not a released one: check only the hidden size of the LLM",
    )
    salmonn.set_defaults(run=run_to_jax_salmonn)
    for kind, flag in (("whisper", "--whisper"), ("beats", "--beats"), ("llama", "--llm")):
        component = kinds.add_parser(kind, help=f"only this component, from a {_SOURCE_HELP[kind]}")
        component.add_argument(flag, required=True, type=cli.local_path, dest="path", help=_SOURCE_HELP[kind])
        component.set_defaults(run=run_to_jax_component)
    for kind in kinds.choices.values():
        kind.add_argument("--output", required=True, type=cli.output_path, metavar="MODEL", help="directory to write")
        _add_verbose(kind)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `salmonn_jax.conversion.settings.options.SalmonnOptions`, each under its field's name."""
    group = parser.add_argument_group("settings", _SETTINGS_HELP)
    for flag, value_type, metavar, help in (
        ("--audio-window-seconds", float, "S", "encoder input; less than Whisper's 30 s cuts its position table"),
        ("--qformer-hidden-size", int, "N", "hidden size of the Q-Former"),
        ("--qformer-num-hidden-layers", int, "N", "layers of the Q-Former"),
        ("--qformer-num-attention-heads", int, "N", "attention heads of the Q-Former"),
        ("--qformer-intermediate-size", int, "N", "hidden size of the Q-Former's feed-forward network"),
        ("--num-speech-query-token", int, "N", "queries, and so audio tokens, per Q-Former window"),
        ("--second-per-window", float, "S", "length of a Q-Former window"),
        ("--second-stride", float, "S", "stride of the Q-Former windows"),
        ("--lora-rank", int, "N", "rank of the adapters"),
        ("--lora-alpha", float, "ALPHA", "numerator of the LoRA scale alpha / rank"),
    ):
        group.add_argument(flag, type=value_type, metavar=metavar, help=help)
    group.add_argument(
        "--lora-target-modules",
        nargs="*",
        metavar="NAME",
        help="projections with an adapter, such as q_proj v_proj; no name: no adapters",
    )
    group.add_argument(
        "--prompt-template",
        metavar="NAME|TEXT",
        help="vicuna, llama3, chatml or mistral, without a system prompt; or a text with {} in place of the prompt, in "
        "which \\n is a new line",
    )
    group.add_argument(
        "--audio-tokens",
        choices=("window", "clip"),
        help="audio tokens in a prompt: of the whole window (default), as in the original, or of the clip only, for "
        "new training",
    )


def _add_to_torch(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `to-torch`."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, run, help in (
        ("salmonn", run_to_torch, "the original's .pth, with the trained parameters"),
        ("peft", run_to_torch, "a PEFT directory, with the LoRA adapters"),
        ("llama", run_to_torch_llama, "a Hugging Face directory of the language model, with merged adapters"),
    ):
        subparser = kinds.add_parser(kind, help=help)
        subparser.add_argument("--model", required=True, type=cli.path, help="model or run directory")
        subparser.add_argument("--output", required=True, type=cli.output_path, help="file or directory to write")
        subparser.set_defaults(run=run)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `compare`."""
    parser.add_argument("--model", required=True, type=cli.path, help="directory of the converted model")
    parser.add_argument("--whisper", type=cli.local_path, metavar="DIR", help=_SOURCE_HELP["whisper"])
    parser.add_argument("--beats", type=cli.local_path, metavar="FILE", help=_SOURCE_HELP["beats"])
    parser.add_argument("--llm", type=cli.local_path, metavar="DIR", help=_SOURCE_HELP["llama"])
    parser.add_argument("--checkpoint", type=cli.local_path, metavar="FILE", help="SALMONN .pth file")
    parser.add_argument("--prompt", default="Describe the audio.", help="prompt (default: %(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest relative error that passes (default: %(default)s)"
    )
    cli.add_audio_options(parser, "error", "truncate")
    parser.add_argument("clip", type=cli.file_to_read, metavar="CLIP", help="audio file")
    parser.set_defaults(run=run_compare)


def run_to_torch(arguments: argparse.Namespace) -> None:
    """Writes the trained parameters as a SALMONN `.pth` or a PEFT directory."""
    from salmonn_jax.conversion import to_torch

    write = {"salmonn": to_torch.write_salmonn_checkpoint, "peft": to_torch.write_peft_adapter}[arguments.kind]
    write(arguments.model, arguments.output)
    print(f"wrote {arguments.output}")


def run_to_torch_llama(arguments: argparse.Namespace) -> None:
    """Writes the language model as a Hugging Face directory, with a progress bar."""
    from salmonn_jax.conversion import to_torch

    with _bar(to_torch.llama_bytes(arguments.model), arguments.output) as bar:
        to_torch.write_hf_llama(arguments.model, arguments.output, bar.update)
    print(f"wrote {arguments.output}")


def run_inspect(arguments: argparse.Namespace) -> None:
    """Prints the contents of a checkpoint."""
    from salmonn_jax.conversion import inspection

    for line in inspection.describe_checkpoint(arguments.path, verbose=arguments.verbose):
        print(line)


def run_compare(arguments: argparse.Namespace) -> None:
    """Prints the error of each layer against PyTorch. On a mismatch, prints the first such layer and exits with 1."""
    import warnings

    from salmonn_jax.conversion.comparison import compare
    from salmonn_jax.errors import AudioWarning

    warnings.simplefilter("ignore")  # the PyTorch packages warn about each other
    warnings.simplefilter("default", AudioWarning)
    paths = compare.CheckpointPaths(
        whisper=arguments.whisper, beats=arguments.beats, llm=arguments.llm, checkpoint=arguments.checkpoint
    )
    first_mismatch = None
    differences = compare.compare(
        arguments.model,
        paths,
        arguments.clip,
        arguments.prompt,
        too_long=arguments.too_long,
        channels=arguments.channels,
    )
    for index, difference in enumerate(differences):
        if index == 0:  # bad input has been refused
            print(f"{'layer':24} {'relative':>10} {'max abs':>10}")
        mismatch = not difference.relative_error <= arguments.tolerance  # NaN is a mismatch too
        errors = f"{difference.relative_error:10.1e} {difference.max_abs_error:10.1e}"
        print(f"{difference.layer:24} {errors}{' <- mismatch' if mismatch else ''}")
        first_mismatch = first_mismatch or (difference if mismatch else None)
    if first_mismatch is None:
        print(f"all layers agree within {arguments.tolerance:g}")
        return
    print(
        f"first mismatching layer: {first_mismatch.layer} (relative error {first_mismatch.relative_error:.1e}, "
        f"max abs error {first_mismatch.max_abs_error:.1e})"
    )
    sys.exit(1)


def run_to_jax_component(arguments: argparse.Namespace) -> None:
    """Converts one component to a model directory."""
    from salmonn_jax.conversion import to_jax

    _execute_plan(to_jax.plan_component(arguments.kind, arguments.path), arguments.output, verbose=arguments.verbose)


def run_to_jax_salmonn(arguments: argparse.Namespace) -> None:
    """Converts a whole SALMONN to a model directory."""
    from salmonn_jax.conversion import to_jax
    from salmonn_jax.conversion.settings import summary
    from salmonn_jax.conversion.settings.options import SalmonnOptions
    from salmonn_jax.tokenizer import load_tokenizer

    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(SalmonnOptions)}
    if arguments.lora_target_modules is not None:
        values["lora_target_modules"] = tuple(arguments.lora_target_modules)
    plan = to_jax.plan_salmonn(
        arguments.whisper,
        arguments.beats,
        arguments.llm,
        arguments.checkpoint,
        SalmonnOptions(**values),
        own_checkpoint=arguments.own_checkpoint,
    )
    for line in summary.describe(plan, load_tokenizer(arguments.llm)):
        print(line)
    _execute_plan(plan, arguments.output, verbose=arguments.verbose)


def _execute_plan(plan: Any, output: Path, *, verbose: bool) -> None:
    """Prints the ignored tensors of a `ConversionPlan`, and writes the model directory."""
    from salmonn_jax.conversion import mapping, to_jax

    ignored = [f"ignored {name}: {reason}" for name, reason in plan.ignored.items()]
    for line in ignored if verbose else mapping.summarize_ignored(plan.ignored):
        print(line, file=sys.stderr)
    with _bar(plan.nbytes, output) as bar:
        to_jax.write_model(plan, output, bar.update)
    print(f"wrote {output}")


def _bar(total: int, output: Path) -> Any:
    """Returns a progress bar over `total` bytes."""
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, desc=str(output))


if __name__ == "__main__":
    cli.run(main)
