"""Whether a training job fits on a TPU slice, and what it costs. `launch.plan` and `launch.submit` use it."""
