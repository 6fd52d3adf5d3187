"""What every entry point shares: errors become one line and an exit code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import absl.logging

from salmonn_jax.errors import UserError

START_TIME = time.monotonic()  # for the time to the first step


def start_jax() -> None:
    """What every entry point does before it computes: joins the other hosts, and keeps what is compiled.

    Compiled programs are kept in JAX_COMPILATION_CACHE_DIR (a bucket will do), by default `.cache/xla`, so that the
    second start of a job does not compile again.
    """
    import jax

    from salmonn_jax import distributed

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(".cache/xla"))
    distributed.initialize()


def exit_immediately(code: int) -> None:
    """Ends at once: the TPU compiler may hang in the orderly way out."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(main: Callable[[], None]) -> None:
    """Runs an entry point. Bad input: one line, exit code 2. A disk or network that fails: one line, exit code 1.
    Interrupted by the user: exit code 130."""
    # Libraries log what concerns their own developers; what concerns the user is raised.
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever reads the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
