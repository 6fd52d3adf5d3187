"""Several processes of one program: how they start, wait for each other with a deadline, and are told when one is gone.

Every host of a slice runs the same command. What could wait for ever for a host that is not there ends with a message
instead: the start, the barriers, the first sum over all devices, and a step that does not come back.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from salmonn_jax.errors import UserError

BARRIER_TIMEOUT_SECONDS = 600
PEER_LOST_EXIT_CODE = 75  # exit code of a process that gives up on the others: EX_TEMPFAIL, worth another try


def initialize(timeout_seconds: int = 300) -> None:
    """Joins the other processes, where there are any. To be called before anything else touches JAX.

    On TPU VMs and GKE the processes find each other. Anywhere else the environment names them: COORDINATOR_ADDRESS
    (host:port of process 0), PROCESS_COUNT and PROCESS_ID. Without these nothing is done.

    Ends the process if not all of them joined within `seconds`.

    Raises:
      UserError: the environment names them in part.
    """
    if jax.distributed.is_initialized():
        return
    named = {name: os.environ.get(name) for name in ("COORDINATOR_ADDRESS", "PROCESS_COUNT", "PROCESS_ID")}
    arguments = {}
    if any(named.values()):
        absent = [name for name, value in named.items() if not value]
        if absent:
            raise UserError(f"{' and '.join(absent)} must be set too, on every host")
        arguments = {
            "coordinator_address": named["COORDINATOR_ADDRESS"],
            "num_processes": int(named["PROCESS_COUNT"]),
            "process_id": int(named["PROCESS_ID"]),
        }
    elif not _on_tpu():
        return
    with deadline(timeout_seconds, "joining the other processes; was the command started on every host?"):
        # JAX's own time is longer: at its end the process is aborted with a stack trace of C++.
        jax.distributed.initialize(**arguments, initialization_timeout=timeout_seconds + 60)


def is_main_process() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str, timeout_seconds: float = BARRIER_TIMEOUT_SECONDS) -> None:
    """Waits until every process is here. Raises TimeoutError, naming the barrier, when one is not in time."""
    if jax.process_count() == 1:
        return
    # Orbax's: its other function, and JAX's own, take a timeout and pay no heed to it.
    import orbax.checkpoint as ocp

    try:
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=round(timeout_seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise TimeoutError(
            f"{name}: not every process came within {timeout_seconds:.0f} s ({_first_line(error)})"
        ) from None


def preflight(storage: pathlib.Path, timeout_seconds: float = 300) -> None:
    """Checks what a job of many hosts stands on, before anything is compiled; ends the process if it takes too long.

    All devices answer in one sum; every process can write to `storage` (a directory, made if absent) and sees what
    the others wrote.

    Raises:
      UserError: a device is missing from the sum, or storage cannot be written to or is not the same one everywhere.
    """
    index, count = jax.process_index(), jax.process_count()
    print(
        f"process {index} of {count}: {jax.local_device_count()} of {jax.device_count()} devices "
        f"({jax.devices()[0].device_kind})",
        file=sys.stderr,
    )
    # What connects the devices of CPU processes waits 30 s for the others, who may still be reading their first batch.
    barrier("preflight: all are here", timeout_seconds)
    with deadline(timeout_seconds, "a sum over all devices; a host or a link between hosts does not answer"):
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
        everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("all"))
        ones = jax.jit(lambda: jnp.ones(jax.device_count()), out_shardings=split)()
        total = int(jax.device_get(jax.jit(jnp.sum, out_shardings=everywhere)(ones)))
    if total != jax.device_count():
        raise UserError(f"{total} of {jax.device_count()} devices answered a sum")
    with deadline(timeout_seconds, f"writing to {storage}"):
        _check_storage(storage, index, count, timeout_seconds)


def _check_storage(storage: pathlib.Path, index: int, count: int, timeout_seconds: float) -> None:
    mine = storage / f".preflight-{index}"
    try:
        storage.mkdir(parents=True, exist_ok=True)
        mine.write_text("here")
        barrier("preflight: written", timeout_seconds)
        seen = [i for i in range(count) if (storage / f".preflight-{i}").is_file()]
        barrier("preflight: seen", timeout_seconds)
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise UserError(f"{storage} cannot be written to: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            mine.unlink()
    if len(seen) != count:
        raise UserError(f"process {index} sees only what {len(seen)} of {count} wrote to {storage}; it must be shared")


@contextlib.contextmanager
def deadline(timeout_seconds: float, activity: str) -> Iterator[None]:
    """Ends the process with a message and the stacks of its threads if the body takes longer."""
    watchdog = Watchdog(timeout_seconds, activity)
    try:
        yield
    finally:
        watchdog.stop()


@contextlib.contextmanager
def exit_on_peer_failure() -> Iterator[None]:
    """Ends the process with a message when what is computed together fails, as it does where a host is gone.

    At once: the orderly way out would wait for the others.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} gave up: {_first_line(error)}; "
            "is another process gone? The same command on every host goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(PEER_LOST_EXIT_CODE)


class Watchdog:
    """Ends the process if nothing happens for too long: a step, of which one host waits for another, never returns.

    Python cannot interrupt such a wait, so a thread looks on. It writes what it waited for and every thread's stack to
    stderr and exits with code 75, for the scheduler to start the job again.
    """

    def __init__(self, timeout_seconds: float, activity: str, on_timeout: Callable[[int], object] = os._exit):
        self._timeout_seconds, self._activity, self._on_timeout = timeout_seconds, activity, on_timeout
        self._deadline = time.monotonic() + timeout_seconds
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def heartbeat(self) -> None:
        """Says that something happened; the time begins anew."""
        self._deadline = time.monotonic() + self._timeout_seconds

    def stop(self) -> None:
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
    """Whether this is a TPU host, on which JAX finds the other hosts by itself (or finds that there are none)."""
    devices = list(pathlib.Path("/dev").glob("accel[0-9]*")) + list(pathlib.Path("/dev/vfio").glob("[0-9]*"))
    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    return bool(devices) and "tpu" in wanted and importlib.util.find_spec("libtpu") is not None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]
