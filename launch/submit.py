"""Start a run on TPU slices: python -m launch.submit {tpu-vm,gke} CONFIG --topology v5p-128 --output gs://BUCKET/RUN

Every host of the slices runs `python -m launch.train CONFIG --output RUN [field=value ...]`, which goes on where it
stopped, so a host that is gone or a slice that is taken away costs the steps since the last checkpoint. It drives
gcloud (tpu-vm: queued resources) or kubectl (gke: a JobSet), which must be installed and signed in. What they would be
told is checked first, for a typo is to cost nothing; --dry-run prints it and runs nothing.

  python -m launch.submit tpu-vm debug --topology v5e-8 --output gs://lab/runs/debug --spot --zone us-west4-a \\
      --package gs://lab/salmonn_jax-0.1.0-py3-none-any.whl --dry-run
  python -m launch.submit gke debug data.clips=16 data.streams=16 --topology v5e-8 --slices 2 \\
      --output gs://lab/runs/debug --image us-docker.pkg.dev/lab/images/salmonn:1 --dry-run
  python -m launch.submit gke --list
  python -m launch.submit gke --logs debug-v5e-8
  python -m launch.submit gke --delete debug-v5e-8

The wheel: pip wheel --no-deps --wheel-dir dist . && gcloud storage cp dist/*.whl gs://lab/
The image: launch/gke/Dockerfile. Buckets are directories of the hosts, /gcs/BUCKET, by Cloud Storage FUSE; make them
with hierarchical namespace, in which a directory is renamed at once. The service account must be able to write there.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from typing import Any

from launch import cli
from launch.gke import GkeBackend
from launch.job import Backend, Command, Job, referenced_buckets, to_mounted_path
from launch.tpu_vm import TpuVmBackend
from launch.train import resolve_config
from salmonn_jax.errors import UserError

BACKEND_OPTIONS = {"tpu-vm": ("package", "zone", "project"), "gke": ("image",)}  # options that one backend has
REQUIRED_OPTIONS = {"tpu-vm": ("topology", "output", "package"), "gke": ("topology", "output", "image")}  # to submit
INSTALL_HINTS = {
    "gcloud": "the Google Cloud CLI, https://cloud.google.com/sdk/docs/install",
    "kubectl": "Kubernetes, https://kubernetes.io/docs/tasks/tools, or `gcloud components install kubectl`",
}


def main() -> None:
    arguments = _parser().parse_intermixed_args()
    for other, options in BACKEND_OPTIONS.items():
        for option in options:
            if other != arguments.backend and getattr(arguments, option) is not None:
                raise UserError(f"--{option} is of {other}, not of {arguments.backend}")
    backend = (
        TpuVmBackend(arguments.package, arguments.zone, arguments.project)
        if arguments.backend == "tpu-vm"
        else GkeBackend(arguments.image)
    )
    if arguments.list:
        run_command(backend.list_command(), arguments.dry_run)
    elif arguments.logs:
        run_command(backend.logs_command(arguments.logs), arguments.dry_run)
    elif arguments.delete:
        run_command(backend.delete_command(arguments.delete), arguments.dry_run)
    else:
        submit(backend, arguments)


def submit(backend: Backend, arguments: argparse.Namespace) -> None:
    """Checks everything that can be checked here, then starts the job."""
    job = job_from_arguments(arguments)
    run_command(backend.submit_command(job), arguments.dry_run)
    if not arguments.dry_run:
        print(f"submitted {job.name}: --logs {job.name} follows it, --delete {job.name} ends it; {backend.submit_note}")


def job_from_arguments(arguments: argparse.Namespace) -> Job:
    """The job that was asked for.

    Raises:
      UserError: something is missing, the configuration is wrong or does not go with the slices, or a path is not one
        that every host sees.
    """
    # Nothing here needs a device; and looking for a TPU would take its time.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from data_pipelines import corpora
    from salmonn_jax import topologies

    missing = [f"--{option}" for option in REQUIRED_OPTIONS[arguments.backend] if getattr(arguments, option) is None]
    if not arguments.config or missing:
        needed = ["CONFIG"] * (not arguments.config) + missing
        raise UserError(f"{' and '.join(needed)} must be given; see python -m launch.submit --help")
    if arguments.slices < 1 or arguments.restarts < 0:
        raise UserError("--slices must be at least 1, --restarts at least 0")
    config = resolve_config(arguments.config, arguments.overrides)
    topology = topologies.get_topology(arguments.topology, arguments.slices)
    check_mesh(config, topology)
    if config.data.corpus not in corpora.CORPORA:
        corpora.open_corpus(config.data.corpus, config.data.data_dir)  # says what is wrong
    shared = {"--output": arguments.output, "--model": arguments.model}
    if config.data.corpus != "tones":  # which every host makes for itself
        shared["data.data_dir"] = config.data.data_dir
    for option, path in shared.items():
        if path is not None and not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+(/[^/].*)", path):
            raise UserError(f"{option} {path} must be gs://bucket/directory: hosts see no disk of this machine")
    name = arguments.name or f"{arguments.config}-{topology.name}".replace("_", "-")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise UserError(f"--name {name} must be at most 40 of a-z, 0-9 and -, and begin with a letter")
    words = ["--output", arguments.output, *(["--model", arguments.model] if arguments.model else [])]
    words += arguments.overrides
    return Job(
        name=name,
        topology=topology,
        argv=("python", "-m", "launch.train", arguments.config, *map(to_mounted_path, words)),
        buckets=referenced_buckets((*words, arguments.package or "")),
        output_bucket=referenced_buckets((arguments.output,))[0],
        spot=arguments.spot,
        max_restarts=arguments.restarts,
        service_account=arguments.service_account,
    )


def check_mesh(config: Any, topology: Any) -> None:
    """Raises UserError if the configuration's mesh or batch does not go with these slices, or is wrong in itself."""
    from salmonn_jax import sharding
    from salmonn_jax.config import check_data_sizes

    each = topology.chips // topology.slices
    chips = [_StubDevice(index, index // each) for index in range(topology.chips)]
    sharding.check_batch(config.data, sharding.make_mesh(config.mesh, chips))
    check_data_sizes(config.data)


@dataclasses.dataclass(frozen=True)
class _StubDevice:
    """What a mesh asks a device for."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "none"
    device_kind: str = "none"


def run_command(command: Command, dry_run: bool) -> None:
    """Runs the command, whose output is the user's. Its failure is ours: exit code 1."""
    if dry_run:
        print(command.to_shell())
        return
    tool = command.argv[0]
    if shutil.which(tool) is None:
        raise UserError(f"{tool} is not installed here; it comes with {INSTALL_HINTS[tool]}")
    if subprocess.run(command.argv, input=command.stdin, text=True, check=False).returncode:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backend", choices=tuple(BACKEND_OPTIONS), help="where the slices come from")
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="name of a configuration, such as mini_stage1")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes to the configuration")
    parser.add_argument("--topology", help="slice, such as v5p-128, v5e-16 or v6e-64")
    parser.add_argument("--slices", type=int, default=1, help="how many of them (default: %(default)s)")
    parser.add_argument("--output", metavar="RUN", help="directory of the run, gs://BUCKET/DIRECTORY")
    parser.add_argument("--model", help="model or run directory to start from, gs://BUCKET/DIRECTORY")
    parser.add_argument("--name", help="of the job (default: CONFIG-TOPOLOGY)")
    parser.add_argument("--spot", action="store_true", help="on cheaper machines that may be taken away at any time")
    parser.add_argument(
        "--service-account", metavar="ACCOUNT", help="as which hosts or pods run (default: the usual one)"
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=10,
        help="starts after a failure (default: %(default)s); bad input ends the job, preemption on GKE does not count",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and run nothing")
    instead = parser.add_argument_group("instead of submitting").add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="jobs there are")
    instead.add_argument("--logs", metavar="NAME", help="follow its first host")
    instead.add_argument("--delete", metavar="NAME", help="end it, and give the slices back")
    machines = parser.add_argument_group("tpu-vm only")
    machines.add_argument("--package", help="what hosts install: gs://BUCKET/WHEEL, or as pip takes it")
    machines.add_argument("--zone", help="default: gcloud's own")
    machines.add_argument("--project", help="default: gcloud's own")
    parser.add_argument_group("gke only").add_argument("--image", help="container image that holds salmonn-jax[tpu]")
    return parser


if __name__ == "__main__":
    cli.run(main)
