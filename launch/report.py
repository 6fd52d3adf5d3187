"""Write the page of a training run: python -m launch.report RUN [--output FILE.html]

The page has curves of the metrics of the run: losses and accuracies by source, on training and on held-out examples,
gradient norms, learning rate, shares of the sources, and speed. `launch.train` writes it at the end; this command
writes it at any time, also while the run is running.
"""

from __future__ import annotations

from launch import cli


def main() -> None:
    """Parses the command line and writes the page."""
    parser = cli.make_parser("report", __doc__)
    parser.add_argument("run", type=cli.path, metavar="RUN", help="run directory of launch.train")
    parser.add_argument(
        "--output", type=cli.output_path, metavar="FILE", help="HTML file (default: index.html in the run directory)"
    )
    arguments = parser.parse_args()
    from salmonn_jax.training.run_page.page import write_run_page

    print(f"page: {write_run_page(arguments.run, arguments.output)}")


if __name__ == "__main__":
    cli.run(main)
