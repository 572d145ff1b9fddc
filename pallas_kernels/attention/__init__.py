"""Attention over a compressed cache."""

from kakeya_jax.pallas_kernels.attention.api import compressed_attention as compressed_attention
from kakeya_jax.pallas_kernels.attention.softmax_state import Attended as Attended
