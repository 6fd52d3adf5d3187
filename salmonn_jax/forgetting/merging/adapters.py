"""Sums of low-rank adapters: inner products, concatenation and recompression, without computing their products.

An adapter adds scale * a @ b to a kernel. Merging `a` and `b` separately would add cross terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Adapter of one kernel: scale * a @ b, with `a` float32[in, rank] and `b` float32[rank, out]."""

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        """Returns the rank."""
        return self.a.shape[1]

    @property
    def product(self) -> np.ndarray:
        """Returns what the adapter adds to the kernel, float32[in, out]."""
        return np.float32(self.scale) * (self.a @ self.b)


def inner_products(adapters: Sequence[Adapter]) -> np.ndarray:
    """Returns the inner products of the products of adapters, flattened, float64[adapters, adapters]."""
    wide = [(x.a.astype(np.float64), x.scale * x.b.astype(np.float64)) for x in adapters]
    return np.array([[np.sum((a.T @ c) * (b @ d.T)) for c, d in wide] for a, b in wide])


def concatenate(weights: Sequence[float], adapters: Sequence[Adapter], scale: float) -> Adapter:
    """Returns the adapter whose product is the weighted sum of products. Its rank is the sum of ranks.

    Args:
      weights: weight of each adapter. One of 1 leaves its adapter bit for bit as it is, if it has `scale`.
      adapters: adapters of one kernel.
      scale: scale of the result.
    """
    a = np.concatenate([adapter.a for adapter in adapters], axis=1)
    b = np.concatenate([np.float32(w * x.scale / scale) * x.b for w, x in zip(weights, adapters, strict=True)])
    return Adapter(a, b, scale)


def pad(adapter: Adapter, rank: int) -> Adapter:
    """Returns the same adapter with zeros up to `rank`."""
    missing = rank - adapter.rank
    return Adapter(np.pad(adapter.a, ((0, 0), (0, missing))), np.pad(adapter.b, ((0, missing), (0, 0))), adapter.scale)


def recompress(adapter: Adapter, rank: int) -> tuple[Adapter, float]:
    """Returns the nearest adapter of a rank, with scale 1, and its relative error (Eckart and Young 1936).

    Args:
      adapter: an adapter of any rank.
      rank: rank of the result.
    """
    q_in, r_in = np.linalg.qr(adapter.a.astype(np.float64))
    q_out, r_out = np.linalg.qr(adapter.scale * adapter.b.astype(np.float64).T)
    u, singular, vt = np.linalg.svd(r_in @ r_out.T)
    return _truncate(q_in @ u, singular, vt @ q_out.T, rank, np.square(singular).sum())


def compress(product: np.ndarray, rank: int) -> tuple[Adapter, float]:
    """Returns the nearest adapter of a rank to a difference of kernels, with scale 1, and its relative error.

    Args:
      product: float32[in, out].
      rank: rank of the result.
    """
    from scipy.sparse.linalg import svds

    wide = product.astype(np.float64)
    if rank < min(wide.shape) // 4:  # a few singular values of a large matrix
        u, singular, vt = svds(wide, k=rank, rng=np.random.default_rng(0))
        u, singular, vt = u[:, ::-1], singular[::-1], vt[::-1]
    else:
        u, singular, vt = np.linalg.svd(wide, full_matrices=False)
    return _truncate(u, singular, vt, rank, np.square(wide).sum())


def _truncate(u: np.ndarray, singular: np.ndarray, vt: np.ndarray, rank: int, total: float) -> tuple[Adapter, float]:
    """Returns the adapter of the greatest singular values, and its error. `total` is the sum of all squares."""
    root = np.sqrt(singular[:rank])
    kept = Adapter((u[:, :rank] * root).astype(np.float32), (root[:, None] * vt[:rank]).astype(np.float32), 1.0)
    lost = max(0.0, total - np.square(singular[:rank]).sum())
    return pad(kept, rank), float(np.sqrt(lost / total)) if total else 0.0
