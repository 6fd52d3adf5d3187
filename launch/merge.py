"""Merge models: python -m launch.merge merge.yml OUT

Reads a recipe in mergekit's format and merges what was trained from one base: adapters, Q-Former, norms, projection.

    merge_method: ties            # linear, slerp, nuslerp, task_arithmetic, ties, dare_linear, dare_ties, breadcrumbs,
    base_model: MODEL             #   breadcrumbs_ties, della, della_linear, model_stock, wise_ft
    models:
      - model: RUN_ONE            # model or run directory, RUN/checkpoints/N, or a PEFT adapter directory
        parameters: {weight: 0.9, density: 0.5}
      - model: RUN_TWO
        parameters: {weight: 0.1, density: 0.5}
    parameters: {normalize: true, lambda: 1.0}
    dtype: float32

Paths are relative to the file. Without base_model the base is the models before any training. The models are audited
before anything is written. If all models are PEFT adapters and there is no base_model, OUT is a PEFT adapter. See
docs/merging.md.
"""

from __future__ import annotations

import time
from typing import Any

from launch import cli


def main() -> None:
    """Parses the command line, merges and prints a summary."""
    parser = cli.make_parser("merge", __doc__)
    parser.add_argument("recipe", type=cli.path, metavar="merge.yml", help="the recipe")
    parser.add_argument("output", type=cli.output_path, metavar="OUT", help="directory that is made")
    parser.add_argument(
        "--lora",
        choices=("concat", "svd", "dense"),
        help="merged adapters as one adapter of the sum of ranks, as the nearest one of --svd-rank, or added to the "
        "kernels (default: an exact one: concat for weighted sums, dense for other methods; svd for PEFT adapters)",
    )
    parser.add_argument(
        "--svd-rank", type=cli.positive_int, metavar="RANK", help="rank of svd (default: the greatest of the models)"
    )
    parser.add_argument("--only", metavar="REGEX", help="merge what matches; the rest is that of the base")
    parser.add_argument(
        "--compat",
        choices=("mergekit", "paper"),
        default="mergekit",
        help="whose rules to follow where mergekit differs from the papers (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=cli.non_negative_int, default=0, help="seed of DARE and DELLA (default: %(default)s)"
    )
    arguments = parser.parse_args()

    from salmonn_jax.files import refuse_existing
    from salmonn_jax.forgetting.merging.plan import MergeOptions, plan_merge
    from salmonn_jax.forgetting.merging.recipe import read_recipe
    from salmonn_jax.forgetting.merging.write import write_merge

    start = time.monotonic()
    refuse_existing(arguments.output)
    options = MergeOptions(
        lora=arguments.lora,
        svd_rank=arguments.svd_rank,
        only=arguments.only,
        compat=arguments.compat,
        seed=arguments.seed,
    )
    plan = plan_merge(read_recipe(arguments.recipe), arguments.recipe.parent, options)
    report = write_merge(plan, arguments.output)
    for line in describe(report):
        print(line)
    print(f"merged: {arguments.output} ({time.monotonic() - start:.1f} s)")


def describe(report: dict[str, Any]) -> list[str]:
    """Returns the lines that summarise a merge.

    Args:
      report: see `write_merge`.
    """
    lines = [f"{report['merge']['merge_method']} of {len(report['differences'])} models"]
    for model, norms in report["differences"].items():
        parts = ", ".join(f"{group} {norm:.4g}" for group, norm in norms.items())
        lines.append(f"  {model}: norm of the difference from the base: {parts}")
    if "adapters" in report["units"]:
        lines.append(f"adapters: {report['options']['lora']}, rank {report['rank']}")
    if "recompression" in report:
        errors = report["recompression"]
        lines.append(f"  relative error of recompression: mean {errors['mean']:.2e}, largest {errors['largest']:.2e}")
    lines += report["warnings"]
    return lines


if __name__ == "__main__":
    cli.run(main)
