"""PyTorch checkpoints in and out. The only room of the library in which torch is imported, and only when needed."""
