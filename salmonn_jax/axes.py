"""Names of the array axes in type annotations, such as `Float[Array, "rows seq hidden"]`.

Within one call of a function, axes of the same name have the same size. The test suite checks that, and that every name
in an annotation is one of these.
"""

from __future__ import annotations

AXES = {
    "batch": "any number of leading axes, written *batch",
    "clips": "clips of a batch, each as long as the encoder window",
    "samples": "PCM samples of a clip, 16 kHz",
    "mels": "mel bins",
    "frames": "outputs of an encoder: 50 a second of Whisper and of the Q-Former's input, tokens of BEATs",
    "feature_frames": "frames of a filter bank, 100 a second",
    "windows": "Q-Former windows",
    "queries": "queries of the Q-Former",
    "audio_tokens": "audio tokens of a clip: windows times queries",
    "rows": "rows of the language model's input",
    "seq": "tokens of a row",
    "keys": "tokens that are attended to: those of the row, or the slots of the KV cache",
    "beams": "beams of a row in a beam search; one otherwise",
    "candidates": "candidates for the next beams, and finished answers",
    "sources": "sources of the training mixture",
    "targets": "predicted tokens of a row: one less than its tokens",
    "transcript": "tokens of a clip's transcript",
    "new_tokens": "tokens that are decoded",
    "hidden": "hidden size",
    "in_features": "input size of a layer",
    "out_features": "output size of a layer",
    "heads": "attention heads",
    "kv_heads": "heads of keys and values, which several attention heads may share",
    "head_size": "size of an attention head",
    "half_head": "rotary frequencies: half the size of an attention head",
    "vocab": "vocabulary",
    "layers": "layers of a stack",
}
