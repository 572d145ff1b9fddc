"""The codec family: one method, one file. ``registry`` finds a method by name."""

from kakeya_jax.codecs.registry import codec_config as codec_config
from kakeya_jax.codecs.registry import codec_names as codec_names
