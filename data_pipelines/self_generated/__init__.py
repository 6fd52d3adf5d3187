"""Training data that a model generates itself: the prompts for it, and the manifests that hold its answers."""
