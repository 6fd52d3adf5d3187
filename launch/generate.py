"""Answer a prompt about audio files: python -m launch.generate --model RUN --prompt "What sound is this?" FILE ...

Prints one line per file, when its batch is done: its path and the answer, without line breaks; --output keeps them. A
file that cannot be used is one line on stderr; the other files are answered, and the exit code is 2.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from launch import cli

if TYPE_CHECKING:
    from salmonn_jax.api import Generation, Model
    from salmonn_jax.config import GenerationConfig
    from salmonn_jax.decoding.requests import Request
    from salmonn_jax.paths import Path


def main() -> None:
    """Parses the command line and answers the prompt for each file."""
    parser = cli.make_parser("generate", __doc__)
    parser.add_argument("--model", required=True, type=cli.path, help="model or run directory")
    parser.add_argument("--prompt", required=True, help="prompt, answered for each file separately")
    parser.add_argument(
        "--batch-size",
        type=cli.positive_int,
        default=8,
        help="files that are answered at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=cli.output_path, metavar="FILE", help="also write the answers, with times, as JSON lines"
    )
    cli.add_audio_options(parser, "error", "truncate", "chunk", "chunk_answers")
    cli.add_generation_options(parser)
    parser.add_argument(
        "files", nargs="+", type=cli.file_to_read, metavar="FILE", help="audio files of any format and sampling rate"
    )
    arguments = vars(parser.parse_args())
    generation_config = cli.pop_generation_config(arguments)
    cli.start_jax()
    if generate(**arguments, generation_config=generation_config):
        sys.exit(2)


def generate(
    model: Path,
    prompt: str,
    files: Sequence[str],
    generation_config: GenerationConfig,
    output: Path | None = None,
    batch_size: int = 8,
    too_long: str = "error",
    channels: str = "first",
) -> int:
    """Answers the prompt for each file, in batches, and prints the answers of each batch when it is done.

    Args:
      model: model or run directory.
      prompt: prompt for all files.
      files: paths or URLs of audio files.
      generation_config: settings of decoding.
      output: file to write, one JSON object per line; each batch is appended when it is done.
      batch_size: files, and encoder windows, that are computed at a time.
      too_long: what happens to clips longer than the encoder window (see `salmonn_jax.audio.windows`).
      channels: see `salmonn_jax.audio.files.load_audio`.

    Returns:
      The number of files that could not be used. Each was reported as one line on stderr.

    Raises:
      UserError: a file or the model does not exist, `output` exists, or an option has a wrong value.
    """
    import salmonn_jax
    from salmonn_jax.errors import UserError
    from salmonn_jax.files import open_growing

    missing = [file for file in files if "://" not in file and not pathlib.Path(file).is_file()]
    if missing:
        others = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise UserError(f"no audio file {missing[0]}{others}")
    if output is not None and output.exists():
        raise UserError(f"{output} already exists; choose another file with --output")
    batches = _read_batches(files, min(batch_size, len(files)), channels)
    first = next(batches)  # before the model is loaded, so that a file that cannot be read is reported at once
    if not first and len(files) <= batch_size:
        return len(files)
    loaded, max_new_tokens = salmonn_jax.load(model), generation_config.max_new_tokens
    num_answered = 0
    with contextlib.nullcontext() if output is None else contextlib.closing(open_growing(output)) as file:
        for clips in itertools.chain([first], batches):
            requests = _make_requests(loaded, files, clips, prompt, too_long=too_long, max_new_tokens=max_new_tokens)
            answers = loaded.answer(list(requests.values()), generation_config, batch_size=min(batch_size, len(files)))
            for index, answer in zip(requests, answers, strict=True):
                print(f"{files[index]}\t{_format(answer)}", flush=True)
                if file is not None:
                    file.write(_to_json_line(files[index], prompt, too_long, answer))
            num_answered += len(answers)
    return len(files) - num_answered


def _read_batches(files: Sequence[str], batch_size: int, channels: str) -> Iterator[dict[int, np.ndarray]]:
    """Yields the clips of each batch of files as int16[samples], by the index of the file.

    It reports files that cannot be read on stderr and leaves them out.
    """
    from salmonn_jax.audio.files import AudioError, load_audio

    for start in range(0, len(files), batch_size):
        clips = {}
        for index in range(start, min(start + batch_size, len(files))):
            try:
                clips[index] = load_audio(files[index], channels=channels)
            except AudioError as error:
                cli.print_error(error)
        yield clips


def _make_requests(
    model: Model,
    files: Sequence[str],
    clips: Mapping[int, np.ndarray],
    prompt: str,
    *,
    too_long: str,
    max_new_tokens: int,
) -> dict[int, Request]:
    """Encodes the prompt for each clip. It reports clips that are too long on stderr and leaves them out."""
    from salmonn_jax.audio.files import AudioError
    from salmonn_jax.config import SAMPLE_RATE

    requests = {}
    for index, pcm in clips.items():
        name = files[index]
        try:
            requests[index] = model.make_request(
                (pcm, SAMPLE_RATE), prompt, max_new_tokens=max_new_tokens, too_long=too_long, name=name
            )
        except AudioError as error:
            cli.print_error(error)
            continue
        used = requests[index].windows[-1][1]
        if used * SAMPLE_RATE < len(pcm):
            print(
                f"warning: {name} is {len(pcm) / SAMPLE_RATE:.1f} s; the model gets the first {used:g} s",
                file=sys.stderr,
            )
    return requests


def _format(answer: Generation) -> str:
    """Returns an answer as one line for the terminal: each stretch of white space becomes one space.

    Several windows that are answered one by one have their times.
    """
    text = answer.text
    if len(answer.windows) > 1 and answer.windows[0].answer is not None:
        text = " ".join(f"[{start:.1f}-{end:.1f} s] {text}" for start, end, text in answer.windows)
    text = " ".join(text.split())
    return text if answer.finish_reason == "stop" else f"{text} [cut at --max-new-tokens]"


def _to_json_line(path: str, prompt: str, too_long: str, answer: Generation) -> bytes:
    """Serialises an answer as one line of JSON."""
    fields = {
        "path": path,
        "prompt": prompt,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "num_tokens": answer.num_tokens,
        "score": answer.score,
        "too_long": too_long,
        "windows": [window._asdict() for window in answer.windows],
    }
    # A path that is not UTF-8 has lone surrogates, which become JSON escapes.
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


if __name__ == "__main__":
    cli.run(main)
