"""Start-up, barriers and failure detection for jobs with several processes. Training and evaluation use them.

Every host of a slice runs the same command. A missing host must not block the others forever, so the start-up, the
barriers, the first collective and every training step have a timeout, after which the process exits with a message.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from salmonn_jax.accelerators import TPU_DEVICES, has_device
from salmonn_jax.errors import UserError
from salmonn_jax.paths import Path

BARRIER_TIMEOUT_SECONDS = 600
PEER_LOST_EXIT_CODE = 75  # EX_TEMPFAIL: another process was lost, the job may be restarted


def initialize(timeout_seconds: int = 300) -> None:
    """Initialises JAX's distributed runtime if the job has several processes. It must run before any other JAX call.

    On TPU VMs and GKE, JAX finds the processes by itself. Elsewhere the environment must set COORDINATOR_ADDRESS
    (host:port of process 0), PROCESS_COUNT and PROCESS_ID. If none of them is set, the job has a single process.

    The process exits if the others have not joined within `timeout_seconds`.

    Raises:
      UserError: only some of the three environment variables are set.
    """
    if jax.distributed.is_initialized():
        return
    env = {name: os.environ.get(name) for name in ("COORDINATOR_ADDRESS", "PROCESS_COUNT", "PROCESS_ID")}
    arguments = {}
    if any(env.values()):
        missing = [name for name, value in env.items() if not value]
        if missing:
            raise UserError(f"{' and '.join(missing)} must be set too on every host")
        arguments = {
            "coordinator_address": env["COORDINATOR_ADDRESS"],
            "num_processes": int(env["PROCESS_COUNT"]),
            "process_id": int(env["PROCESS_ID"]),
        }
    elif not _on_tpu():
        return
    with deadline(timeout_seconds, "joining the other processes; was the command started on every host?"):
        # JAX aborts the process with a C++ stack trace at its own timeout, so that one is longer.
        jax.distributed.initialize(**arguments, initialization_timeout=timeout_seconds + 60)


def process_shard() -> tuple[int, int]:
    """Returns the index of this process and the number of processes."""
    return jax.process_index(), jax.process_count()


def is_main_process() -> bool:
    """Returns whether this is process 0, which writes the files that only one process writes."""
    return process_shard()[0] == 0


def barrier(name: str, timeout_seconds: float = BARRIER_TIMEOUT_SECONDS) -> None:
    """Waits until every process has reached the barrier called `name`. Raises TimeoutError if one does not in time."""
    if jax.process_count() == 1:
        return
    # Orbax's barrier function honours its timeout. Orbax's other function and that of JAX ignore theirs.
    import orbax.checkpoint as ocp

    try:
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=round(timeout_seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise TimeoutError(
            f"barrier {name!r}: not every process arrived within {timeout_seconds:.0f} s ({_first_line(error)})"
        ) from None


def broadcast_from_main(value: int) -> int:
    """Returns the value that process 0 passes. Every process calls it; `value` is a 32-bit integer."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def sum_over_processes(array: np.ndarray) -> np.ndarray:
    """Returns the sum of the arrays of all processes, of the same shape and dtype. Every process calls it."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.process_allgather(array)).sum(axis=0, dtype=array.dtype)


def max_over_processes(value: int) -> int:
    """Returns the largest of the values of all processes, 32-bit integers. Every process calls it."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def preflight(storage: Path, timeout_seconds: float = 300) -> None:
    """Checks devices and storage of a job before anything is compiled. The process exits if a check takes too long.

    The checks are a sum over all devices, and that every process can write to `storage` and see the files of the
    others. The directory `storage` is created if it does not exist.

    Raises:
      UserError: a device is missing from the sum, or `storage` is not writable or not shared by all processes.
    """
    index, count = jax.process_index(), jax.process_count()
    print(
        f"process {index} of {count}: {jax.local_device_count()} of {jax.device_count()} devices "
        f"({jax.devices()[0].device_kind})",
        file=sys.stderr,
    )
    # gloo, which connects CPU processes, waits only 30 s for the others, which may still be reading their first batch.
    barrier("preflight: start", timeout_seconds)
    with deadline(timeout_seconds, "a sum over all devices; a host or a link between hosts does not answer"):
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
        replicated, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("all"))
        ones = jax.jit(lambda: jnp.ones(jax.device_count()), out_shardings=sharded)()
        total = int(jax.device_get(jax.jit(jnp.sum, out_shardings=replicated)(ones)))
    if total != jax.device_count():
        raise UserError(f"{total} of {jax.device_count()} devices answered a sum; check the hosts and restart the job")
    with deadline(timeout_seconds, f"writing to {storage}"):
        _check_storage(storage, index, count, timeout_seconds)


def _check_storage(storage: Path, index: int, count: int, timeout_seconds: float) -> None:
    """Raises UserError if process `index` of `count` cannot write to `storage` or does not see all others' files."""
    probe_file = storage / f".preflight-{index}"
    try:
        storage.mkdir(parents=True, exist_ok=True)
        probe_file.write_text("here")
        barrier("preflight: files are written", timeout_seconds)
        seen = [i for i in range(count) if (storage / f".preflight-{i}").is_file()]
        barrier("preflight: files are counted", timeout_seconds)
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise UserError(f"{storage} cannot be written to: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            probe_file.unlink()
    if len(seen) != count:
        raise UserError(
            f"process {index} sees the files of only {len(seen)} of {count} processes in {storage}; it must be shared"
        )


@contextlib.contextmanager
def deadline(timeout_seconds: float, activity: str) -> Iterator[None]:
    """Exits the process if the body of the `with` block takes longer than the timeout.

    The process prints `activity` and the stacks of its threads, and exits with code 75.
    """
    watchdog = Watchdog(timeout_seconds, activity)
    try:
        yield
    finally:
        watchdog.stop()


@contextlib.contextmanager
def exit_on_peer_failure() -> Iterator[None]:
    """Exits the process with a message if a JAX computation fails, as a collective does when a host is lost.

    It exits immediately, because the normal interpreter shutdown would wait for the other processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} gave up: {_first_line(error)}; "
            "another process may have failed. Run the same command on every host to resume from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(PEER_LOST_EXIT_CODE)


class Watchdog:
    """Timer that exits the process unless `heartbeat` is called often enough.

    If a host is lost, a step that waits for it never returns, and Python cannot interrupt that wait. A background
    thread therefore watches the time. On timeout it prints `activity` and the stack of every thread to stderr and exits
    with code 75, so that the scheduler restarts the job.
    """

    def __init__(self, timeout_seconds: float, activity: str, on_timeout: Callable[[int], object] = os._exit):
        self._timeout_seconds, self._activity, self._on_timeout = timeout_seconds, activity, on_timeout
        self._deadline = time.monotonic() + timeout_seconds
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def heartbeat(self) -> None:
        """Restarts the timer."""
        self._deadline = time.monotonic() + self._timeout_seconds

    def stop(self) -> None:
        """Stops the timer."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(max(0.0, self._deadline - time.monotonic())):
            if time.monotonic() >= self._deadline:
                print(
                    f"error: gave up after {self._timeout_seconds:.0f} s of {self._activity}",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                self._on_timeout(PEER_LOST_EXIT_CODE)
                return


def _on_tpu() -> bool:
    """Returns whether this is a TPU host, on which JAX finds the other hosts by itself."""
    platforms = os.environ.get("JAX_PLATFORMS", "tpu")
    return has_device(*TPU_DEVICES) and "tpu" in platforms and importlib.util.find_spec("libtpu") is not None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]
