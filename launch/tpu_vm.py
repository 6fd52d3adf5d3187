"""Backend of `launch.submit` for TPU VMs: gcloud requests a queued resource whose hosts boot with `tpu/start.sh`."""

from __future__ import annotations

import dataclasses
import pathlib

from launch.job import BUCKET_MOUNT_ROOT, MOUNT_OPTIONS, Command, Job, render_template, to_mounted_path
from salmonn_jax.planning.topologies import CLOUD_NAMES

STARTUP_SCRIPT_TEMPLATE = pathlib.Path(__file__).parent / "tpu" / "start.sh"
GCLOUD_TPUS = ("gcloud", "compute", "tpus")


@dataclasses.dataclass(frozen=True)
class TpuVmBackend:
    """Backend that requests TPU VMs in one zone of one project.

    Attributes:
      package: gs://BUCKET/WHEEL or pip requirement to install on the hosts; None if no job is submitted.
      zone: zone; None for gcloud's default.
      project: project; None for gcloud's default.
    """

    package: str | None
    zone: str | None
    project: str | None

    submit_note = "the slice costs money until --delete; submit the job again after a spot slice is preempted"

    def submit_command(self, job: Job) -> Command:
        """Returns the command that requests the slices. It reads their startup script from stdin."""
        generation, _, size = job.topology.name.partition("-")
        cloud = CLOUD_NAMES[generation]
        slices = job.topology.slices
        nodes = [f"--node-count={slices}", f"--node-prefix={job.name}"] if slices > 1 else [f"--node-id={job.name}"]
        argv = [
            *(*GCLOUD_TPUS, "queued-resources", "create", job.name, *self._location_flags()),
            f"--accelerator-type={cloud.accelerator_type}-{size}",
            f"--runtime-version={cloud.runtime_version}",
            *nodes,
            *(["--spot"] if job.spot else []),
            *([f"--service-account={job.service_account}"] if job.service_account else []),
            "--metadata-from-file=startup-script=/dev/stdin",
            "--quiet",  # an interactive question would consume the script on stdin
        ]
        return Command(tuple(argv), self._startup_script(job))

    def list_command(self) -> Command:
        """Returns the command that lists all queued resources."""
        return Command((*GCLOUD_TPUS, "queued-resources", "list", *self._location_flags()))

    def logs_command(self, name: str) -> Command:
        """Returns the command that prints and follows the log of the first host."""
        journalctl = "sudo journalctl --unit=google-startup-scripts --unit=salmonn --output=cat --lines=1000 --follow"
        first_worker = (*self._location_flags(), "--node=0", "--worker=0")
        return Command((*GCLOUD_TPUS, "queued-resources", "ssh", name, *first_worker, f"--command={journalctl}"))

    def delete_command(self, name: str) -> Command:
        """Returns the command that deletes the queued resource and its machines."""
        # Without --force, gcloud deletes only requests that have no machines yet.
        return Command(
            (*GCLOUD_TPUS, "queued-resources", "delete", name, *self._location_flags(), "--force", "--quiet")
        )

    def _location_flags(self) -> list[str]:
        """Returns the flags for zone and project."""
        location = {"zone": self.zone, "project": self.project}
        return [f"--{name}={value}" for name, value in location.items() if value]

    def _startup_script(self, job: Job) -> str:
        """Returns the startup script of the hosts."""
        return render_template(
            STARTUP_SCRIPT_TEMPLATE,
            buckets=job.buckets,
            directory=BUCKET_MOUNT_ROOT,
            mount_options=MOUNT_OPTIONS,
            package=to_mounted_path(self.package),
            environment=job.environment,
            argv=job.argv,
            max_restarts=job.max_restarts,
        )
