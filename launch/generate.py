"""Answer a prompt about audio files: python -m launch.generate --model RUN --prompt "What sound is this?" FILE ..."""

from __future__ import annotations

import argparse
import pathlib

from launch import cli


def main() -> None:
    """Parses the command line and prints one line per file: its path and the answer."""
    parser = argparse.ArgumentParser(prog="python -m launch.generate", description=__doc__)
    parser.add_argument("--model", required=True, type=pathlib.Path, help="model or run directory")
    parser.add_argument("--prompt", required=True, help="prompt, answered for each file separately")
    parser.add_argument(
        "--max-new-tokens", type=int, default=200, help="maximum tokens of an answer (default: %(default)s)"
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio files of any format and sampling rate")
    arguments = parser.parse_args()

    cli.start_jax()
    import salmonn_jax
    from salmonn_jax.audio.files import load_audio
    from salmonn_jax.config import SAMPLE_RATE

    # The files are read before the model is loaded, so that a wrong file is reported at once.
    clips = [(load_audio(path), SAMPLE_RATE) for path in arguments.files]
    answers = salmonn_jax.load(arguments.model).generate(
        clips, arguments.prompt, max_new_tokens=arguments.max_new_tokens
    )
    for path, answer in zip(arguments.files, answers, strict=True):
        suffix = "" if answer.finish_reason == "stop" else " [cut at --max-new-tokens]"
        print(f"{path}\t{answer.text}{suffix}")


if __name__ == "__main__":
    cli.run(main)
