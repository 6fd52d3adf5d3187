"""Whether a checkpoint goes with a language model.

The wrong Vicuna has the right shapes and gives empty answers, which is what users of the original report most. The
versions differ in what their configurations say, so this can be told before anything is converted.
"""

from __future__ import annotations

import pathlib

from salmonn_jax.config import LlamaConfig
from salmonn_jax.configs.salmonn import MODEL_7B, MODEL_13B
from salmonn_jax.errors import UserError

# What the released checkpoints were trained with, by width.
RELEASED = {
    5120: ("SALMONN-13B", "Vicuna-13B v1.1 (on LLaMA 1)", MODEL_13B.llama),
    4096: ("SALMONN-7B", "Vicuna-7B v1.5 (on Llama 2)", MODEL_7B.llama),
}
_COMPARED = ("vocab_size", "num_hidden_layers", "rms_norm_eps", "max_position_embeddings")


def check_llm(
    hidden_size: int, checkpoint: pathlib.Path, llama_config: LlamaConfig, llm: pathlib.Path, *, own_checkpoint: bool
) -> None:
    """Raises UserError if the language model in `llm` is not the one that `checkpoint` was trained with.

    Args:
      width: of the language model, as the checkpoint's tensors show it.
      checkpoint, llm: for messages.
      llama: the configuration in `llm`.
      own: the user vouches for a checkpoint trained with another language model than the released ones.
    """
    if hidden_size != llama_config.hidden_size:
        wants = f", as {RELEASED[hidden_size][1]} is," if hidden_size in RELEASED else ""
        raise UserError(
            f"{checkpoint} goes with a language model {hidden_size} wide{wants} and {llm} is "
            f"{llama_config.hidden_size} wide"
        )
    if own_checkpoint or hidden_size not in RELEASED:
        return
    model, wanted, expected = RELEASED[hidden_size]
    wrong = [
        f"{field} is {getattr(llama_config, field)} and not {getattr(expected, field)}"
        for field in _COMPARED
        if getattr(llama_config, field) != getattr(expected, field)
    ]
    if wrong:
        raise UserError(
            f"{llm} is not {wanted}, which {model} wants: {', '.join(wrong)}; with another one its answers are empty. "
            "For a checkpoint of your own, trained with this one, pass --own-checkpoint"
        )
