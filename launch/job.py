"""A training job as hosts run it, and the commands that bring it there: what `launch.submit` and its backends share."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shlex
from typing import Protocol

from salmonn_jax.topologies import Topology

# Buckets are directories of the hosts, for training reads and writes files. What one host wrote the others must see at
# once; directories need no objects of their own; a checkpoint is finished by renaming its directory.
BUCKET_MOUNT_ROOT = pathlib.PurePosixPath("/gcs")
MOUNT_OPTIONS = (
    "implicit-dirs",
    "rename-dir-limit=200000",
    "metadata-cache-ttl-secs=0",
    "metadata-cache-negative-ttl-secs=0",
)
LIBTPU_FLAGS_FILE = pathlib.Path(__file__).parent / "tpu" / "libtpu_flags.json"
_GCS_URL = re.compile(r"((?:[\w.]+=)?)gs://([^/]+)(.*)")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of this machine, and what it reads."""

    argv: tuple[str, ...]
    stdin: str | None = None

    def to_shell(self) -> str:
        """As a shell takes it."""
        line = shlex.join(self.argv)
        return line if self.stdin is None else f"{line} <<'END_OF_INPUT'\n{self.stdin}END_OF_INPUT"


@dataclasses.dataclass(frozen=True)
class Job:
    """What every host of a slice, or of several, is to run.

    Attributes:
      name: under which it is listed.
      topology: the slices.
      words: of `python -m launch.train`, as on the hosts.
      buckets: that the hosts see as directories.
      output: bucket of the run, which also keeps compiled programs.
      spot: on machines that may be taken away at any time.
      restarts: how often it is started again after a failure.
      service_account: as which it runs; None: the default one.
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
        """Variables of the training process."""
        variables = {"JAX_COMPILATION_CACHE_DIR": str(BUCKET_MOUNT_ROOT / self.output_bucket / ".cache" / "xla")}
        if self.topology.slices > 1:
            variables["LIBTPU_INIT_ARGS"] = " ".join(json.loads(LIBTPU_FLAGS_FILE.read_text())["several slices"])
        return variables


class Backend(Protocol):
    """Where slices come from."""

    submit_note: str  # what the user should know once the job is submitted

    def submit_command(self, job: Job) -> Command: ...

    def list_command(self) -> Command: ...

    def logs_command(self, name: str) -> Command:
        """Of the first host, to the end and on."""
        ...

    def delete_command(self, name: str) -> Command: ...


def to_mounted_path(argument: str) -> str:
    """A word of the command line, its gs://BUCKET/DIRECTORY as the hosts see it."""
    found = _GCS_URL.fullmatch(argument)
    return f"{found[1]}{BUCKET_MOUNT_ROOT / found[2]}{found[3]}" if found else argument


def referenced_buckets(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The buckets that words of a command line name, each once."""
    return tuple(dict.fromkeys(found[2] for found in map(_GCS_URL.fullmatch, arguments) if found))


def render_template(template: pathlib.Path, **values: object) -> str:
    """The template filled in."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quote"] = shlex.quote
    environment.filters["json"] = json.dumps  # which is YAML too
    return environment.from_string(template.read_text()).render(values)
