"""TPU VMs by queued resources, with gcloud. The queue yields the slice, its hosts boot with `tpu/start.sh`."""

from __future__ import annotations

import dataclasses
import pathlib

from launch.job import BUCKETS, MOUNT_OPTIONS, Command, Job, on_host, rendered
from salmonn_jax.topologies import CLOUD

START = pathlib.Path(__file__).parent / "tpu" / "start.sh"
TPUS = ("gcloud", "compute", "tpus")


@dataclasses.dataclass(frozen=True)
class TpuVm:
    """One zone of one project.

    Attributes:
      package: what to install on the hosts, as pip takes it, or gs://BUCKET/WHEEL.
      zone, project: None: gcloud's own.
    """

    package: str | None
    zone: str | None
    project: str | None

    note = "the slice is kept, and paid for, until --delete; a spot slice that was taken away is submitted again"

    def submit(self, job: Job) -> Command:
        """Requests the slices; their startup script is read from stdin, so that no file needs to be kept."""
        generation, _, size = job.topology.name.partition("-")
        cloud = CLOUD[generation]
        slices = job.topology.slices
        nodes = [f"--node-count={slices}", f"--node-prefix={job.name}"] if slices > 1 else [f"--node-id={job.name}"]
        words = [
            *(*TPUS, "queued-resources", "create", job.name, *self._place()),
            f"--accelerator-type={cloud.accelerator_type}-{size}",
            f"--runtime-version={cloud.runtime_version}",
            *nodes,
            *(["--spot"] if job.spot else []),
            *([f"--service-account={job.service_account}"] if job.service_account else []),
            "--metadata-from-file=startup-script=/dev/stdin",
            "--quiet",  # a question would read the script
        ]
        return Command(tuple(words), self._script(job))

    def listing(self) -> Command:
        return Command((*TPUS, "queued-resources", "list", *self._place()))

    def logs(self, name: str) -> Command:
        read = "sudo journalctl --unit=google-startup-scripts --unit=salmonn --output=cat --lines=1000 --follow"
        first = (*self._place(), "--node=0", "--worker=0")
        return Command((*TPUS, "queued-resources", "ssh", name, *first, f"--command={read}"))

    def delete(self, name: str) -> Command:
        # Without --force only the request could go, not the machines it was granted.
        return Command((*TPUS, "queued-resources", "delete", name, *self._place(), "--force", "--quiet"))

    def _place(self) -> list[str]:
        named = {"zone": self.zone, "project": self.project}
        return [f"--{name}={value}" for name, value in named.items() if value]

    def _script(self, job: Job) -> str:
        return rendered(
            START,
            buckets=job.buckets,
            directory=BUCKETS,
            mount_options=MOUNT_OPTIONS,
            package=on_host(self.package),
            environment=job.environment,
            words=job.words,
            restarts=job.restarts,
        )
