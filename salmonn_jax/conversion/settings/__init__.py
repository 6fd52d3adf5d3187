"""Settings of a converted model: sizes of new parts, prompt template, stop tokens, and their summary."""
