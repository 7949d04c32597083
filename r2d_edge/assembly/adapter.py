"""What is folded into a base model's weights: low-rank adapters, and scales that make int8 activations finer.

A low-rank adapter adds `scale · B A` to a linear layer (Hu et al., ICLR 2022, arXiv 2106.09685). Smoothing divides the
channels of an activation by scales and multiplies the next layer's columns by them (Xiao et al., ICML 2023,
arXiv 2211.10438): the network computes the same, but a few channels no longer take up the whole range of int8.

Everything is computed element by element in a fixed order, never by a matrix product, whose order of summation
depends on the machine: the same parts give the same bytes everywhere.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from r2d_edge.assembly.llama import LINEAR, FloatArray, LlamaShape
from r2d_edge.errors import BundleError

# Whose input each scale smooths: queries, keys and values; the attention's output projection; the gated
# feed-forward layer and the one behind it.
SITES = ("attention", "attention_output", "feed_forward", "feed_forward_output")
HEAD = "head"


@dataclass(frozen=True)
class Adapter:
    """The arrays of adapter.npz.

    Attributes:
        arrays: `layers.{n}.{linear}.A` [rank, in] and `.B` [out, rank] for each linear layer, in float16;
            `layers.{n}.smooth.{site}` and `smooth.head` in float32, where smoothed.
        scale: of every `B A`.
    """

    arrays: Mapping[str, npt.NDArray[np.float16] | FloatArray]
    scale: float

    @classmethod
    def load(cls, path: Path, scale: float, shape: LlamaShape) -> Adapter:
        """Reads an .npz file without pickles.

        Raises:
            BundleError: it is no such file, or does not fit the base model.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                adapter = cls({name: archive[name] for name in archive.files}, scale)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(f"{path.name} cannot be read: {error}") from None
        adapter.check(shape)
        return adapter

    def check(self, shape: LlamaShape) -> None:
        """Refuses arrays that do not fit a network.

        Raises:
            BundleError: one is missing, extra, of a wrong shape or not finite.
        """
        expected = set()
        for layer in range(shape.layers):
            for name, (out, inner) in linear_shapes(shape).items():
                a, b = (self.arrays.get(f"layers.{layer}.{name}.{half}") for half in "AB")
                if a is None or b is None or a.shape != (b.shape[-1], inner) or b.shape != (out, len(a)):
                    raise BundleError(
                        f"the adapter of layer {layer}'s {name} is missing or does not fit the base model"
                    )
                expected |= {f"layers.{layer}.{name}.A", f"layers.{layer}.{name}.B"}
            for site, width in site_widths(shape).items():
                expected |= self._check_scales(f"layers.{layer}.smooth.{site}", width)
        expected |= self._check_scales(f"smooth.{HEAD}", shape.hidden)
        if strange := set(self.arrays) - expected:
            raise BundleError(f"the adapter holds {len(strange)} unknown arrays, for one {min(strange)}")
        if not all(np.isfinite(array).all() for array in self.arrays.values()):
            raise BundleError("the adapter holds values that are no numbers")

    def merged(self, weight: FloatArray, layer: int, name: str) -> FloatArray:
        """A linear layer's weights [out, in] with its adapter folded in."""
        a = self.arrays[f"layers.{layer}.{name}.A"].astype(np.float32)
        b = self.arrays[f"layers.{layer}.{name}.B"].astype(np.float32)
        change = np.zeros_like(weight)
        for row, column in zip(a, b.T, strict=True):
            change += np.multiply.outer(column, row)
        merged: FloatArray = weight + np.float32(self.scale) * change
        return merged

    def smoothing(self, layer: int, site: str) -> FloatArray | None:
        """The scales of a block's activation, or None where it is not smoothed."""
        return self._scales(f"layers.{layer}.smooth.{site}")

    def head_smoothing(self) -> FloatArray | None:
        """The scales [hidden] of the output's input, or None."""
        return self._scales(f"smooth.{HEAD}")

    def _scales(self, name: str) -> FloatArray | None:
        array = self.arrays.get(name)
        return None if array is None else array.astype(np.float32)

    def _check_scales(self, name: str, width: int) -> set[str]:
        array = self.arrays.get(name)
        if array is None:
            return set()
        if array.shape != (width,) or not (array > 0).all():
            raise BundleError(f"the adapter's {name} is not {width} positive numbers")
        return {name}


def linear_shapes(shape: LlamaShape) -> dict[str, tuple[int, int]]:
    """[out, in] of a block's linear layers."""
    keys = shape.hidden // shape.heads * shape.key_heads
    sizes = [(shape.hidden, shape.hidden), (keys, shape.hidden), (keys, shape.hidden), (shape.hidden, shape.hidden)]
    sizes += [(shape.feed_forward, shape.hidden)] * 2 + [(shape.hidden, shape.feed_forward)]
    return dict(zip(LINEAR, sizes, strict=True))


def site_widths(shape: LlamaShape) -> dict[str, int]:
    """How many scales each of a block's sites has; query heads that share values share their scales."""
    widths = (shape.hidden, shape.hidden // shape.heads * shape.key_heads, shape.hidden, shape.feed_forward)
    return dict(zip(SITES, widths, strict=True))


def spread_over_heads(scales: FloatArray, shape: LlamaShape) -> FloatArray:
    """Scales of the value channels [key heads · width], repeated for each query head that reads them: [hidden]."""
    by_head = scales.reshape(shape.key_heads, 1, -1)
    return np.repeat(by_head, shape.heads // shape.key_heads, axis=1).reshape(-1)
