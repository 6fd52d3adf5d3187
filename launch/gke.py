"""Backend of `launch.submit` for Google Kubernetes Engine: a JobSet from `gke/jobset.yaml`, created with kubectl.

kubectl's current context and namespace are used. The cluster needs JobSet 0.10 or newer, the Cloud Storage FUSE driver,
and node pools of the job's topology whose hosts have four chips (ct5lp-hightpu-4t, not -8t).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib

from launch.job import BUCKET_MOUNT_ROOT, MOUNT_OPTIONS, SIGTERM_EXIT_CODE, Command, Job, render_template
from salmonn_jax.errors import UserError
from salmonn_jax.planning.topologies import CLOUD_NAMES

JOBSET = pathlib.Path(__file__).parent / "gke" / "jobset.yaml"


@dataclasses.dataclass(frozen=True)
class GkeBackend:
    """Backend that creates a JobSet in kubectl's current cluster.

    Attributes:
      image: container image with this package; None if no job is submitted.
    """

    image: str | None

    submit_note = "after it ends, the JobSet stays in the list until --delete"

    def submit_command(self, job: Job) -> Command:
        """Returns the command that creates the JobSet. Raises UserError for several single-host slices.

        GKE connects only slices of several hosts with each other.
        """
        topology = job.topology
        hosts = topology.hosts // topology.slices
        if topology.slices > 1 and hosts == 1:
            raise UserError(
                f"--slices {topology.slices}: GKE connects only slices of several hosts, and a {topology.name} has one "
                "host; choose a larger topology"
            )
        chips = math.prod(map(int, topology.grid.split("x"))) // hosts
        manifest = render_template(
            JOBSET,
            job=job,
            image=self.image,
            accelerator=CLOUD_NAMES[topology.name.partition("-")[0]].gke_accelerator,
            hosts=hosts,
            chips=chips,
            directory=BUCKET_MOUNT_ROOT,
            mount_options=MOUNT_OPTIONS,
            sigterm_exit_code=SIGTERM_EXIT_CODE,
        )
        return Command(("kubectl", "create", "--filename=-"), manifest)

    def list_command(self) -> Command:
        """Returns the command that lists all JobSets of this package."""
        return Command(("kubectl", "get", "jobsets", "--selector=app.kubernetes.io/name=salmonn-jax"))

    def logs_command(self, name: str) -> Command:
        """Returns the command that prints and follows the log of the first pod."""
        labels = {
            "jobset.sigs.k8s.io/jobset-name": name,
            "jobset.sigs.k8s.io/job-index": "0",
            "batch.kubernetes.io/job-completion-index": "0",
        }
        selector = ",".join(f"{label}={value}" for label, value in labels.items())
        return Command(("kubectl", "logs", f"--selector={selector}", "--container=train", "--tail=-1", "--follow"))

    def delete_command(self, name: str) -> Command:
        """Returns the command that deletes the JobSet."""
        return Command(("kubectl", "delete", "jobset", name))
