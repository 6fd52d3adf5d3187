"""Files of PyTorch models: torch files, safetensors, and Hugging Face's `config.json`."""
