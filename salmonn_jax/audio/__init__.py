"""Audio files to int16 PCM (`files`), and PCM to log-mel and Kaldi filter-bank features in JAX (`features`)."""
