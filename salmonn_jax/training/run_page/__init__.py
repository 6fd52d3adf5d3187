"""HTML page of a training run, with curves of its metrics. `launch.report` and the end of `launch.train` write it."""
