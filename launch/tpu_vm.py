"""TPU VMs by queued resources, with gcloud. The queue yields the slice, its hosts boot with `tpu/start.sh`."""

from __future__ import annotations

import dataclasses
import pathlib

from launch.job import BUCKET_MOUNT_ROOT, MOUNT_OPTIONS, Command, Job, render_template, to_mounted_path
from salmonn_jax.topologies import CLOUD_NAMES

STARTUP_SCRIPT_TEMPLATE = pathlib.Path(__file__).parent / "tpu" / "start.sh"
GCLOUD_TPUS = ("gcloud", "compute", "tpus")


@dataclasses.dataclass(frozen=True)
class TpuVmBackend:
    """One zone of one project.

    Attributes:
      package: what to install on the hosts, as pip takes it, or gs://BUCKET/WHEEL.
      zone, project: None: gcloud's own.
    """

    package: str | None
    zone: str | None
    project: str | None

    submit_note = "the slice is kept, and paid for, until --delete; a spot slice that was taken away is submitted again"

    def submit_command(self, job: Job) -> Command:
        """Requests the slices; their startup script is read from stdin, so that no file needs to be kept."""
        generation, _, size = job.topology.name.partition("-")
        cloud = CLOUD_NAMES[generation]
        slices = job.topology.slices
        nodes = [f"--node-count={slices}", f"--node-prefix={job.name}"] if slices > 1 else [f"--node-id={job.name}"]
        words = [
            *(*GCLOUD_TPUS, "queued-resources", "create", job.name, *self._location_flags()),
            f"--accelerator-type={cloud.accelerator_type}-{size}",
            f"--runtime-version={cloud.runtime_version}",
            *nodes,
            *(["--spot"] if job.spot else []),
            *([f"--service-account={job.service_account}"] if job.service_account else []),
            "--metadata-from-file=startup-script=/dev/stdin",
            "--quiet",  # a question would read the script
        ]
        return Command(tuple(words), self._startup_script(job))

    def list_command(self) -> Command:
        return Command((*GCLOUD_TPUS, "queued-resources", "list", *self._location_flags()))

    def logs_command(self, name: str) -> Command:
        read = "sudo journalctl --unit=google-startup-scripts --unit=salmonn --output=cat --lines=1000 --follow"
        first = (*self._location_flags(), "--node=0", "--worker=0")
        return Command((*GCLOUD_TPUS, "queued-resources", "ssh", name, *first, f"--command={read}"))

    def delete_command(self, name: str) -> Command:
        # Without --force only the request could go, not the machines it was granted.
        return Command(
            (*GCLOUD_TPUS, "queued-resources", "delete", name, *self._location_flags(), "--force", "--quiet")
        )

    def _location_flags(self) -> list[str]:
        named = {"zone": self.zone, "project": self.project}
        return [f"--{name}={value}" for name, value in named.items() if value]

    def _startup_script(self, job: Job) -> str:
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
