"""Check that a SALMONN checkpoint and a language model belong together, used by `to_jax.plan_salmonn`.

A wrong Vicuna has the right shapes and gives empty answers. Users of the original report this problem most often. The
configurations of the Vicuna versions differ, so a mismatch is found before the conversion.
"""

from __future__ import annotations

import pathlib

from salmonn_jax.config import LlamaConfig
from salmonn_jax.configs.salmonn import MODEL_7B, MODEL_13B
from salmonn_jax.errors import UserError

# The language model of each released checkpoint, by hidden size.
RELEASED = {
    5120: ("SALMONN-13B", "Vicuna-13B v1.1 (on LLaMA 1)", MODEL_13B.llama),
    4096: ("SALMONN-7B", "Vicuna-7B v1.5 (on Llama 2)", MODEL_7B.llama),
}
_COMPARED = ("vocab_size", "num_hidden_layers", "rms_norm_eps", "max_position_embeddings")


def check_llm(
    hidden_size: int, checkpoint: pathlib.Path, llama_config: LlamaConfig, llm: pathlib.Path, *, own_checkpoint: bool
) -> None:
    """Raises UserError if `checkpoint` was trained with another language model than the one in `llm`.

    Args:
      hidden_size: hidden size of the checkpoint's language model, read from its tensors.
      checkpoint: SALMONN `.pth`, named in messages.
      llama_config: configuration of the language model in `llm`.
      llm: Hugging Face directory, named in messages.
      own_checkpoint: whether the user trained the checkpoint. If so, only the hidden size is checked.
    """
    if hidden_size != llama_config.hidden_size:
        expected_note = f" ({RELEASED[hidden_size][1]})" if hidden_size in RELEASED else ""
        raise UserError(
            f"{checkpoint} needs a language model with hidden_size={hidden_size}{expected_note}, but {llm} has "
            f"hidden_size={llama_config.hidden_size}; pass the one it was trained with as --llm"
        )
    if own_checkpoint or hidden_size not in RELEASED:
        return
    released_name, expected_name, expected_config = RELEASED[hidden_size]
    mismatches = [
        f"{field} is {getattr(llama_config, field)} and not {getattr(expected_config, field)}"
        for field in _COMPARED
        if getattr(llama_config, field) != getattr(expected_config, field)
    ]
    if mismatches:
        raise UserError(
            f"{llm} is not {expected_name}, which {released_name} needs: {', '.join(mismatches)}; with another "
            "language model its answers are empty. If you trained the checkpoint with this one, pass --own-checkpoint"
        )
