"""Evaluation: prediction records, metrics, tasks, and the report page. Used by `launch.evaluate`."""
