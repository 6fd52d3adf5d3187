"""Google Kubernetes Engine, with kubectl: a JobSet from `gke/jobset.yaml`, in kubectl's current context and namespace.

The cluster needs JobSet 0.10 or newer, the Cloud Storage FUSE driver, and node pools of this topology whose hosts have
four chips (ct5lp-hightpu-4t, not -8t).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib

from launch.job import BUCKET_MOUNT_ROOT, MOUNT_OPTIONS, Command, Job, render_template
from salmonn_jax.errors import UserError
from salmonn_jax.topologies import CLOUD_NAMES

JOBSET = pathlib.Path(__file__).parent / "gke" / "jobset.yaml"


@dataclasses.dataclass(frozen=True)
class GkeBackend:
    """The cluster kubectl talks to, and the image that holds the package."""

    image: str | None

    submit_note = "the JobSet stays listed when it has ended, until --delete"

    def submit_command(self, job: Job) -> Command:
        """Creates the JobSet. Raises UserError for several slices of one host, which GKE does not join."""
        topology = job.topology
        hosts = topology.hosts // topology.slices
        if topology.slices > 1 and hosts == 1:
            raise UserError(
                f"GKE joins slices of several hosts only; a {topology.name} has one, take a larger topology"
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
        )
        return Command(("kubectl", "create", "--filename=-"), manifest)

    def list_command(self) -> Command:
        return Command(("kubectl", "get", "jobsets", "--selector=app.kubernetes.io/name=salmonn-jax"))

    def logs_command(self, name: str) -> Command:
        labels = {
            "jobset.sigs.k8s.io/jobset-name": name,
            "jobset.sigs.k8s.io/job-index": "0",
            "batch.kubernetes.io/job-completion-index": "0",
        }
        chosen = ",".join(f"{label}={value}" for label, value in labels.items())
        return Command(("kubectl", "logs", f"--selector={chosen}", "--container=train", "--tail=-1", "--follow"))

    def delete_command(self, name: str) -> Command:
        return Command(("kubectl", "delete", "jobset", name))
