"""Command-line programs, one module per program, started with `python -m launch.NAME`."""
