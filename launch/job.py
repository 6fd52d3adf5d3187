"""Job on TPU hosts, and the backend interface. Shared by `launch.submit`, `launch.gke` and `launch.tpu_vm`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shlex
from typing import Protocol

from salmonn_jax.planning.topologies import Topology

# Buckets are mounted because training reads and writes files. Metadata is not cached, so that all hosts see a new file
# at once. Directories are implicit, because they may have no object of their own. The rename limit is high, because a
# checkpoint is completed by renaming its directory.
BUCKET_MOUNT_ROOT = pathlib.PurePosixPath("/gcs")
MOUNT_OPTIONS = (
    "implicit-dirs",
    "rename-dir-limit=200000",
    "metadata-cache-ttl-secs=0",
    "metadata-cache-negative-ttl-secs=0",
)
# Exit code of an unfinished run after SIGTERM. With 0, the services would take the run for finished and not restart it.
SIGTERM_EXIT_CODE = 143
LIBTPU_FLAGS_FILE = pathlib.Path(__file__).parent / "tpu" / "libtpu_flags.json"
_GCS_URL = re.compile(r"((?:[\w.]+=)?)gs://([^/]+)(.*)")


@dataclasses.dataclass(frozen=True)
class Command:
    """Command line on this machine, with the text of its stdin."""

    argv: tuple[str, ...]
    stdin: str | None = None

    def to_shell(self) -> str:
        """Returns the command in shell syntax, with stdin as a here-document."""
        line = shlex.join(self.argv)
        return line if self.stdin is None else f"{line} <<'END_OF_INPUT'\n{self.stdin}END_OF_INPUT"


@dataclasses.dataclass(frozen=True)
class Job:
    """Training or evaluation job that every host of the slices runs.

    Attributes:
      name: name in the backend's list of jobs.
      topology: the slices.
      argv: command line on the hosts.
      buckets: buckets to mount on the hosts.
      output_bucket: bucket of the output directory, which also has the compilation cache.
      spot: whether to use machines that may be preempted at any time.
      max_restarts: number of restarts after failures.
      service_account: service account of the hosts or pods; None for the default one.
    """

    name: str
    topology: Topology
    argv: tuple[str, ...]
    buckets: tuple[str, ...]
    output_bucket: str
    spot: bool
    max_restarts: int
    service_account: str | None

    @property
    def environment(self) -> dict[str, str]:
        """Returns the environment variables of the job's process."""
        variables = {"JAX_COMPILATION_CACHE_DIR": str(BUCKET_MOUNT_ROOT / self.output_bucket / ".cache" / "xla")}
        if self.topology.slices > 1:
            variables["LIBTPU_INIT_ARGS"] = " ".join(json.loads(LIBTPU_FLAGS_FILE.read_text())["several slices"])
        return variables


class Backend(Protocol):
    """Interface of the services that provide slices. Methods return commands and run nothing."""

    submit_note: str  # note to the user after a submission

    def submit_command(self, job: Job) -> Command:
        """Returns the command that submits a job."""
        ...

    def list_command(self) -> Command:
        """Returns the command that lists all jobs."""
        ...

    def logs_command(self, name: str) -> Command:
        """Returns the command that prints and follows the log of a job's first host."""
        ...

    def delete_command(self, name: str) -> Command:
        """Returns the command that ends a job and releases its slices."""
        ...


def to_mounted_path(argument: str) -> str:
    """Returns a command-line argument with gs://BUCKET/DIRECTORY replaced by the path of the mounted bucket."""
    match = _GCS_URL.fullmatch(argument)
    return f"{match[1]}{BUCKET_MOUNT_ROOT / match[2]}{match[3]}" if match else argument


def referenced_buckets(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the distinct buckets in command-line arguments."""
    return tuple(dict.fromkeys(match[2] for match in map(_GCS_URL.fullmatch, arguments) if match))


def render_template(template: pathlib.Path, **values: object) -> str:
    """Renders a Jinja template. A variable without a value is an error."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quote"] = shlex.quote
    environment.filters["json"] = json.dumps  # JSON is valid YAML
    return environment.from_string(template.read_text()).render(values)
