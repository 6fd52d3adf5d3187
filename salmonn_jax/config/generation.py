"""Settings of decoding: search, sampling, length and penalties. Decoder, Python interface and entry points use them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from salmonn_jax.config.typed import STRICT, NonNegativeInt, PositiveInt
from salmonn_jax.errors import UserError

MAX_LORA_MULTIPLIER = 1e6


def _parse_multiplier(value: Any) -> float | tuple[float, ...]:
    """Reads a number, or a list of numbers. The message of an error is that of pydantic for a number out of range."""
    numbers = value if isinstance(value, list | tuple) else [value]
    if not numbers or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        raise PydanticCustomError("multiplier", "must be a number, or a list with a number of each layer")
    if not all(math.isfinite(x) and 0 <= x <= MAX_LORA_MULTIPLIER for x in numbers):
        raise PydanticCustomError(
            "multiplier", f"must be greater than or equal to 0 and less than or equal to {MAX_LORA_MULTIPLIER:.0f}"
        )
    return tuple(map(float, numbers)) if isinstance(value, list | tuple) else float(value)


LoraMultiplier = Annotated[float | tuple[float, ...], PlainValidator(_parse_multiplier)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GenerationConfig:
    """Settings of decoding. Names and meanings are those of transformers' `GenerationConfig`.

    The defaults are those of the paper's evaluation (`configs/decode_config.yaml` of the original): four beams, at most
    200 new tokens, no sampling, no penalties.

    With one beam and without sampling, decoding is greedy. `compat` selects between two versions of transformers
    whose results differ. "hf4.28" is the version of the original: its `generate` puts a start token before the new
    tokens. The length penalty of an answer that is cut at `max_new_tokens`, `min_length` and the repetition penalty
    count this token. "hf5" does not count it.
    """

    num_beams: PositiveInt = Field(4, description="beams of the search; 1 for greedy decoding or sampling")
    max_new_tokens: PositiveInt = Field(
        200, description="maximum number of tokens of an answer, the stop token included"
    )
    min_length: NonNegativeInt = Field(
        1, description="tokens before the first stop token; hf4.28 counts the start token too"
    )
    # Bounds keep the arithmetic of the decoder, which is float32, finite.
    length_penalty: float = Field(
        1.0, ge=-8, le=8, description="a finished beam's score is divided by its number of tokens to this power"
    )
    early_stopping: Literal[False, True, "never"] = Field(
        False,
        description="true: stop when num_beams answers are finished; false: estimate whether a better one can "
        'follow; "never": stop when none can follow',
    )
    repetition_penalty: float = Field(
        1.0,
        ge=1e-3,
        le=1e3,
        description="divides positive logits of tokens that the answer has, multiplies negative ones",
    )
    do_sample: bool = Field(False, description="draw tokens instead of choosing the most probable ones")
    temperature: float = Field(1.0, ge=1e-6, le=1e6, description="divides the logits before a token is drawn")
    top_k: NonNegativeInt = Field(0, description="draw from this many most probable tokens; 0: from all")
    top_p: float = Field(
        1.0, gt=0, le=1, description="draw from the most probable tokens whose probabilities sum to this"
    )
    seed: NonNegativeInt = Field(0, description="seed of sampling; each request has its own random numbers")
    lora_multiplier: LoraMultiplier = Field(
        1.0, description="factor of the adapters' scale, or a list with one of each layer; 0 leaves the adapters out"
    )
    lora_gate: Literal["always", "text_only_off"] = Field(
        "always", description='prompts that use the adapters; "text_only_off": those with audio only'
    )
    compat: Literal["hf4.28", "hf5"] = Field("hf4.28", description="version of transformers whose rules apply")

    @property
    def lora_multipliers(self) -> tuple[float, ...]:
        """Returns the multiplier of each layer, or the only one."""
        return self.lora_multiplier if isinstance(self.lora_multiplier, Sequence) else (self.lora_multiplier,)

    def check_lora_multiplier(self, num_layers: int) -> None:
        """Raises UserError if there is a multiplier for each layer, but of another number of layers."""
        if isinstance(self.lora_multiplier, Sequence) and len(self.lora_multiplier) != num_layers:
            raise UserError(
                f"lora_multiplier has {len(self.lora_multiplier)} values, and the language model has {num_layers} "
                "layers; give one value, or one of each layer"
            )

    @model_validator(mode="after")
    def _check_fields_that_go_together(self) -> Self:
        if self.do_sample and self.num_beams > 1:
            raise ValueError(f"num_beams={self.num_beams}: must be 1 with do_sample=true")
        self._require("do_sample=true", self.do_sample, temperature=1.0, top_k=0, top_p=1.0, seed=0)
        self._require("num_beams above 1", self.num_beams > 1, length_penalty=1.0, early_stopping=False)
        if self.min_length > self.max_new_tokens:
            raise ValueError(f"min_length={self.min_length}: must be at most max_new_tokens={self.max_new_tokens}")
        return self

    def _require(self, condition: str, holds: bool, **neutral: object) -> None:
        """Raises ValueError if a field that only applies under `condition` is not neutral while it does not hold."""
        for name, value in neutral.items():
            if not holds and getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)}: applies only with {condition}")
