"""Helpers shared by all entry points: parser, types of options, JAX start-up, errors as one line with an exit code."""

from __future__ import annotations

import argparse
import io
import math
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import absl.logging

from salmonn_jax import paths
from salmonn_jax.accelerators import use_cpu_without_accelerator
from salmonn_jax.errors import AudioWarning, RunError, UserError, is_out_of_memory

if TYPE_CHECKING:
    from salmonn_jax.config import GenerationConfig

START_TIME = time.monotonic()  # start of the process, to report the time to the first step


class Parser(argparse.ArgumentParser):
    """Parser of a command line, which raises its errors as UserError. Its subparsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError, in place of argparse's error of several lines."""
        raise UserError(f"{message}; see {self.prog} --help")


def make_parser(verb: str, description: str) -> Parser:
    """Returns the parser of `python -m launch.VERB`, without options.

    Args:
      verb: name of the module in `launch`.
      description: text for --help, which keeps its line breaks.
    """
    return Parser(
        prog=f"python -m launch.{verb}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def path(text: str) -> paths.Path:
    """Type of an option that reads a local path or a URL of a bucket, such as gs://BUCKET/DIRECTORY."""
    parsed = paths.as_path(text)
    paths.check_readable(parsed)
    return parsed


def output_path(text: str) -> paths.Path:
    """Type of an option that writes to a local path or a URL of a bucket, which must be writable."""
    parsed = paths.as_path(text)
    paths.check_writable(parsed)
    return parsed


def local_path(text: str) -> pathlib.Path:
    """Type of an option whose files are mapped into memory, or are written by other programs: no URL."""
    parsed = paths.as_path(text)
    if paths.is_url(parsed):
        raise UserError(f"{text}: must be on a local disk; copy it there first")
    return parsed


def file_to_read(text: str) -> str:
    """Type of an option that reads a single file from a local path or any URL that fsspec opens, such as https://."""
    return paths.check_file_location(text)


def positive_int(text: str) -> int:
    """Type of an option that counts something, of which there is at least one."""
    return _number(text, int, lambda value: value >= 1, "a whole number of at least 1")


def non_negative_int(text: str) -> int:
    """Type of an option that counts something, of which there may be none."""
    return _number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def positive_float(text: str) -> float:
    """Type of an option that measures something, such as minutes."""
    return _number(text, float, lambda value: 0 < value < math.inf, "a number greater than 0")


def share(text: str) -> float:
    """Type of an option that is a share of something, from 0 to 1."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def lora_multiplier(text: str) -> float:
    """Type of an option that is a LoRA multiplier."""
    from salmonn_jax.config.generation import MAX_LORA_MULTIPLIER

    expected = f"a number from 0 to {MAX_LORA_MULTIPLIER:.0f}"
    return _number(text, float, lambda value: 0 <= value <= MAX_LORA_MULTIPLIER, expected)


def _number(text: str, number: type, is_valid: Callable[[float], bool], expected: str) -> Any:
    """Returns a text as a number. Raises argparse's error, which then names the option, if it is not a valid one."""
    try:
        if is_valid(number(text)):
            return number(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: must be {expected}")


def start_jax() -> None:
    """Joins the other hosts and enables JAX's persistent compilation cache.

    The cache is in JAX_COMPILATION_CACHE_DIR, which may be in a bucket, or by default in `.cache/xla`. With it, a
    restarted job does not compile its programs again.
    """
    import jax

    from salmonn_jax import distributed

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(".cache/xla"))
    distributed.initialize()


def exit_immediately(code: int) -> None:
    """Ends the process without interpreter shutdown, in which the TPU compiler may hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def add_audio_options(parser: argparse.ArgumentParser, *policies: str) -> None:
    """Adds --channels and --too-long, the options that say how clips are read.

    Args:
      parser: parser of the entry point.
      policies: choices of --too-long (see `salmonn_jax.audio.windows`); the first is the default.
    """
    parser.add_argument(
        "--channels",
        choices=("first", "mean"),
        default="first",
        help="channel of a recording that is used: the first, or the mean of all (default: %(default)s)",
    )
    meanings = {
        "error": "an error",
        "truncate": "cut, as in the original",
        "chunk": "all windows in one prompt",
        "chunk_answers": "one answer per window",
    }
    parser.add_argument(
        "--too-long",
        choices=policies,
        default=policies[0],
        help="clips longer than the model's window (30 s in the released models): "
        + ", ".join(f"{policy} ({meanings[policy]})" for policy in policies)
        + " (default: %(default)s)",
    )


def add_generation_options(parser: argparse.ArgumentParser, defaults: GenerationConfig | None = None) -> None:
    """Adds an option for every field of `GenerationConfig`, such as --num-beams. `pop_generation_config` reads them.

    Args:
      parser: parser of the entry point.
      defaults: values without the options; None for those of `GenerationConfig`.
    """
    from salmonn_jax.config import GenerationConfig, describe_fields

    group = parser.add_argument_group("decoding (fields of GenerationConfig)")
    for name, value, description in describe_fields(defaults or GenerationConfig()):
        option = f"--{name.replace('_', '-')}"
        if value is False and name == "do_sample":
            group.add_argument(option, action="store_const", const="true", help=description)
        else:
            default = f" (default: {str(value).lower() if isinstance(value, bool) else value})"
            group.add_argument(option, metavar="VALUE", help=description + default)


def pop_generation_config(arguments: dict[str, object], defaults: GenerationConfig | None = None) -> GenerationConfig:
    """Removes the options of `add_generation_options` from parsed arguments and returns their configuration.

    Args:
      arguments: `vars` of the parsed arguments.
      defaults: as in `add_generation_options`.

    Raises:
      UserError: a value is not valid. The message names the field.
    """
    from salmonn_jax.config import GenerationConfig, apply_overrides, describe_fields

    defaults = defaults or GenerationConfig()
    given = {name: arguments.pop(name) for name, _, _ in describe_fields(defaults)}
    return apply_overrides(defaults, [f"{k}={v}" for k, v in given.items() if v is not None])


def print_any_text() -> None:
    """Makes stdout and stderr print characters that their encoding lacks as backslash escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_warnings_as_lines() -> None:
    """Makes each `AudioWarning` one line on stderr, without its place in the code. Other warnings do not change."""
    show = warnings.showwarning

    def show_line(message, category, *place, **options) -> None:
        if issubclass(category, AudioWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            show(message, category, *place, **options)

    warnings.showwarning = show_line


def print_error(error: Exception) -> None:
    """Prints an error as one line on stderr. A line break in its message, such as one in a file name, is a space."""
    print(f"error: {' '.join(str(error).splitlines()) or type(error).__name__}", file=sys.stderr)


def run(main: Callable[[], None]) -> None:
    """Runs an entry point and turns errors into one line on stderr and an exit code.

    Bad input (UserError) exits with 2, an interrupt by the user with 130; a failed run (RunError), a disk or network
    failure (OSError) and too little memory of a device exit with 1.
    """
    # Warnings of libraries are of no use to the user. Errors are raised as exceptions.
    absl.logging.set_verbosity(absl.logging.ERROR)
    use_cpu_without_accelerator()
    print_any_text()
    print_warnings_as_lines()
    try:
        main()
    except UserError as error:
        print_error(error)
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output closed it early, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (RunError, OSError) as error:
        print_error(error)
        sys.exit(1)
    except Exception as error:
        if is_out_of_memory(error):
            error = RunError(
                f"{str(error).splitlines()[0]}; choose a smaller batch (--batch-size, or data.rows and data.clips of a "
                "run), shorter answers, or more devices (mesh)"
            )
        elif not paths.is_client_error(error):
            raise
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
