"""Start a run on TPU slices: python -m launch.submit {tpu-vm,gke} CONFIG --topology v5p-128 --output gs://BUCKET/RUN

With `evaluate` in place of CONFIG and the options of launch.evaluate, it starts an evaluation. Otherwise every host of
the slices runs `python -m launch.train CONFIG --output RUN [field=value ...]`. A restarted run resumes
from its last checkpoint, so a failed host or a preempted slice costs only the steps since then. The command calls
gcloud (tpu-vm: queued resources) or kubectl (gke: a JobSet), which must be installed and signed in. It first checks the
configuration and all options, so that a typo starts no machine. With --dry-run it prints the call and runs nothing.

  python -m launch.submit tpu-vm debug --topology v5e-8 --output gs://lab/runs/debug --spot --zone us-west4-a \\
      --package gs://lab/salmonn_jax-0.1.0-py3-none-any.whl --dry-run
  python -m launch.submit gke debug data.clips=16 data.streams=16 --topology v5e-8 --slices 2 \\
      --output gs://lab/runs/debug --image us-docker.pkg.dev/lab/images/salmonn:1 --dry-run
  python -m launch.submit gke evaluate --model gs://lab/runs/debug --manifest gs://lab/test.jsonl --topology v5e-16 \\
      --output gs://lab/evaluations/debug --mesh tensor=4 --image us-docker.pkg.dev/lab/images/salmonn:1 --dry-run
  python -m launch.submit gke --list
  python -m launch.submit gke --logs debug-v5e-8
  python -m launch.submit gke --delete debug-v5e-8

Build the wheel: pip wheel --no-deps --wheel-dir dist . && gcloud storage cp dist/*.whl gs://lab/
Build the image with launch/gke/Dockerfile. Cloud Storage FUSE mounts buckets at /gcs/BUCKET on the hosts. Create the
buckets with a hierarchical namespace, in which renaming a directory is atomic. The service account needs write access.
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
from launch.job import SIGTERM_EXIT_CODE, Backend, Command, Job, referenced_buckets, to_mounted_path
from launch.presets import require_model, resolve_preset
from launch.tpu_vm import TpuVmBackend
from salmonn_jax.errors import UserError

BACKEND_OPTIONS = {"tpu-vm": ("package", "zone", "project"), "gke": ("image",)}  # options of only one backend
REQUIRED_OPTIONS = {
    "tpu-vm": ("package",),
    "gke": ("image",),
}  # options that a submission needs, beside --topology and --output
INSTALL_HINTS = {
    "gcloud": "the Google Cloud CLI, https://cloud.google.com/sdk/docs/install",
    "kubectl": "Kubernetes, https://kubernetes.io/docs/tasks/tools, or `gcloud components install kubectl`",
}


def main() -> None:
    """Parses the command line and lists, follows, deletes or submits a job."""
    words = sys.argv[1:]
    if words[1:2] == ["evaluate"]:
        # What the parser of the job does not know goes to the parser of launch.evaluate, in the same order.
        arguments, evaluate_words = _job_parser().parse_known_args([words[0], *words[2:]])
    else:
        arguments, evaluate_words = _train_parser().parse_intermixed_args(), None
    for other, options in BACKEND_OPTIONS.items():
        for option in options:
            if other != arguments.backend and getattr(arguments, option) is not None:
                raise UserError(f"--{option} is an option of {other}, not of {arguments.backend}; omit it")
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
        job = train_job(arguments) if evaluate_words is None else evaluate_job(arguments, evaluate_words)
        submit(backend, job, arguments)


def submit(backend: Backend, job: Job, arguments: argparse.Namespace) -> None:
    """Submits a checked job."""
    run_command(backend.submit_command(job), arguments.dry_run)
    if not arguments.dry_run:
        print(
            f"submitted {job.name}; follow it with --logs {job.name}, end it with --delete {job.name}; "
            f"{backend.submit_note}"
        )


def train_job(arguments: argparse.Namespace) -> Job:
    """Returns the checked training job for these command-line arguments.

    Raises:
      UserError: an option is missing, the configuration is invalid or does not fit the slices, or a path is not in a
        bucket.
    """
    # Nothing here needs a device, and a search for a TPU would take time.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from data_pipelines import corpora
    from salmonn_jax.planning import topologies

    _require(arguments, [] if arguments.config else ["CONFIG"], ["output"])
    # The model is in a bucket, so the hosts check the fields of the model.
    is_remote = arguments.model is not None
    overrides = [text for text in arguments.overrides if not (is_remote and text.startswith("model."))]
    preset = resolve_preset(arguments.config, overrides)
    recipe = preset.recipe if is_remote else require_model(preset).recipe
    topology = topologies.get_topology(arguments.topology, arguments.slices)
    check_mesh(recipe, topology)
    if recipe.data.corpus not in corpora.CORPORA:
        corpora.open_corpus(recipe.data.corpus, recipe.data.data_dir)  # raises the UserError for an unknown name
    cloud_paths = {"--output": arguments.output, "--model": arguments.model}
    if recipe.data.corpus != "tones":  # every host makes this corpus itself
        cloud_paths["data.data_dir"] = recipe.data.data_dir
    if recipe.data.prompt_templates:
        cloud_paths["data.prompt_templates"] = recipe.data.prompt_templates
    if recipe.data.encoder_cache:
        cloud_paths["data.encoder_cache"] = recipe.data.encoder_cache
    _check_cloud_paths(cloud_paths)
    train_arguments = ["--output", arguments.output, *(["--model", arguments.model] if arguments.model else [])]
    train_arguments += ["--sigterm-exit-code", str(SIGTERM_EXIT_CODE), *arguments.overrides]
    words = ["launch.train", arguments.config, *train_arguments]
    return _make_job(arguments, topology, arguments.config, words, arguments.output)


def evaluate_job(arguments: argparse.Namespace, words: list[str]) -> Job:
    """Returns the checked evaluation job for these command-line arguments.

    Args:
      arguments: options of the job.
      words: command line of `launch.evaluate`.

    Raises:
      UserError: an option is missing or wrong, the mesh does not fit the hosts, or a path is not in a bucket.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    from launch import answering, evaluate
    from salmonn_jax.evaluation.settings import check_local_mesh
    from salmonn_jax.planning import topologies

    # `--option=value` becomes two words, so that paths are words of their own.
    words = [part for word in words for part in (word.split("=", 1) if re.match(r"--[\w-]+=", word) else [word])]
    _require(arguments, [], [])
    options = vars(evaluate.make_parser(path=str, output_path=str, file_to_read=str).parse_args(words))
    cli.pop_generation_config(dict(options))
    topology = topologies.get_topology(arguments.topology, arguments.slices)
    check_local_mesh(answering.parse_mesh(options["mesh"]), topology.chips // topology.hosts)
    if not options["manifest"] and not options["data_dir"]:
        raise UserError("missing arguments: --manifest; the hosts have no corpus of their own")
    paths = {
        f"--{name.replace('_', '-')}": options[name] for name in ("output", "model", "data_dir", "prompt_templates")
    }
    _check_cloud_paths(paths)
    for manifest in options["manifest"] or ():
        _check_cloud_paths({"--manifest": manifest})
    words = ["launch.evaluate", *words, "--sigterm-exit-code", str(SIGTERM_EXIT_CODE)]
    return _make_job(arguments, topology, "evaluate", words, options["output"])


def _require(arguments: argparse.Namespace, missing: list[str], options: list[str]) -> None:
    """Raises UserError if arguments or options of the job are missing."""
    options = ["topology", *options, *REQUIRED_OPTIONS[arguments.backend]]
    missing += [f"--{option}" for option in options if getattr(arguments, option) is None]
    if missing:
        raise UserError(f"missing arguments: {', '.join(missing)}; see python -m launch.submit --help")


def _check_cloud_paths(paths: dict[str, str | None]) -> None:
    """Raises UserError if a path is given and not in a bucket."""
    for option, path in paths.items():
        if path is not None and not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+(/[^/].*)", path):
            raise UserError(f"{option} {path}: must be gs://BUCKET/DIRECTORY, since hosts cannot read local disks")


def _make_job(arguments: argparse.Namespace, topology: Any, what: str, words: list[str], output: str) -> Job:
    """Returns a job whose hosts run `python -m WORDS` with the paths of mounted buckets.

    Args:
      arguments: options of the job.
      topology: the slices.
      what: what is run, for the default name of the job.
      words: module and arguments.
      output: output directory of the job.

    Raises:
      UserError: the name of the job is not valid.
    """
    name = arguments.name or f"{what}-{topology.name}".replace("_", "-")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise UserError(f"--name {name}: must be at most 40 characters of a-z, 0-9 and -, and begin with a letter")
    return Job(
        name=name,
        topology=topology,
        argv=("python", "-m", *map(to_mounted_path, words)),
        buckets=referenced_buckets((*words, arguments.package or "")),
        output_bucket=referenced_buckets((output,))[0],
        spot=arguments.spot,
        max_restarts=arguments.restarts,
        service_account=arguments.service_account,
    )


def check_mesh(recipe: Any, topology: Any) -> None:
    """Raises UserError if the recipe's mesh or batch is invalid, or does not fit these slices."""
    from salmonn_jax import sharding

    chips_per_slice = topology.chips // topology.slices
    devices = [_StubDevice(index, index // chips_per_slice) for index in range(topology.chips)]
    mesh = sharding.make_mesh(recipe.mesh, devices)
    sharding.check_batch(recipe.data, mesh, recipe.gradient_accumulation_steps)


@dataclasses.dataclass(frozen=True)
class _StubDevice:
    """Device with the attributes that `sharding.make_mesh` reads."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "none"
    device_kind: str = "none"


def run_command(command: Command, dry_run: bool) -> None:
    """Runs a command, whose output goes to the terminal. With `dry_run`, only prints it. Exits with 1 if it fails."""
    if dry_run:
        print(command.to_shell())
        return
    tool = command.argv[0]
    if shutil.which(tool) is None:
        raise UserError(f"{tool} is not installed; install {INSTALL_HINTS[tool]}")
    if subprocess.run(command.argv, input=command.stdin, text=True, check=False).returncode:
        sys.exit(1)


def _train_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line of a training job."""
    parser = _job_parser()
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="name of a configuration, such as mini_stage1, or evaluate"
    )
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes to the configuration")
    parser.add_argument("--output", metavar="RUN", help="run directory, gs://BUCKET/DIRECTORY")
    parser.add_argument("--model", help="model or run directory to start from, gs://BUCKET/DIRECTORY")
    return parser


def _job_parser() -> argparse.ArgumentParser:
    """Returns the parser of the options that training and evaluation jobs share."""
    parser = cli.make_parser("submit", __doc__)
    parser.allow_abbrev = False  # --m would be taken from the options of launch.evaluate
    parser.add_argument("backend", choices=tuple(BACKEND_OPTIONS), help="service that provides the slices")
    parser.add_argument("--topology", help="slice, such as v5p-128, v5e-16 or v6e-64")
    parser.add_argument("--slices", type=cli.positive_int, default=1, help="number of slices (default: %(default)s)")
    parser.add_argument("--name", help="name of the job (default: CONFIG-TOPOLOGY)")
    parser.add_argument("--spot", action="store_true", help="use cheaper machines that may be preempted at any time")
    parser.add_argument(
        "--service-account",
        metavar="ACCOUNT",
        help="service account of the hosts or pods (default: the project's or namespace's)",
    )
    parser.add_argument(
        "--restarts",
        type=cli.non_negative_int,
        default=10,
        help="restarts after failures (default: %(default)s); bad input ends the job, GKE preemption does not count",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the gcloud or kubectl call, and run nothing")
    job_group = parser.add_argument_group("instead of submitting").add_mutually_exclusive_group()
    job_group.add_argument("--list", action="store_true", help="list all jobs")
    job_group.add_argument("--logs", metavar="NAME", help="follow the log of a job's first host")
    job_group.add_argument("--delete", metavar="NAME", help="end a job and release its slices")
    tpu_vm_group = parser.add_argument_group("tpu-vm only")
    tpu_vm_group.add_argument("--package", help="package to install on hosts: gs://BUCKET/WHEEL or a pip requirement")
    tpu_vm_group.add_argument("--zone", help="zone (default: that of gcloud)")
    tpu_vm_group.add_argument("--project", help="project (default: that of gcloud)")
    parser.add_argument_group("gke only").add_argument("--image", help="container image with salmonn-jax[tpu]")
    return parser


if __name__ == "__main__":
    cli.run(main)
