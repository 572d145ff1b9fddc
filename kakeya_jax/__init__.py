"""KV-cache compression for LLM decoders in JAX.

The core is functions of arrays and pytrees: a codec turns a block of key or value vectors into packed words
and back, a recipe says which codec codes which layer, and a compressed cache holds the packed words that
attention reads. Importing it needs neither Flax nor a GPU; the layers above (``kakeya_jax.pallas_kernels``,
``.models``, ``.calibration``, ``.eval``) are imported by name.
"""

from kakeya_jax.accounting import CacheReport as CacheReport
from kakeya_jax.accounting import cache_report as cache_report
from kakeya_jax.accounting import nbytes as nbytes
from kakeya_jax.cache import CompressedCache as CompressedCache
from kakeya_jax.cache_file import load_cache as load_cache
from kakeya_jax.cache_file import save_cache as save_cache
from kakeya_jax.codec import Codec as Codec
from kakeya_jax.codec import CodecConfig as CodecConfig
from kakeya_jax.codec import round_trip as round_trip
from kakeya_jax.codecs.registry import codec_config as codec_config
from kakeya_jax.codecs.registry import codec_names as codec_names
from kakeya_jax.codecs.registry import register_codec as register_codec
from kakeya_jax.recipe import Recipe as Recipe
from kakeya_jax.recipe import Rule as Rule
from kakeya_jax.session_file import load_session as load_session
from kakeya_jax.session_file import read_page as read_page
from kakeya_jax.session_file import save_session as save_session
from kakeya_jax.session_file import session_info as session_info

__version__ = "0.1.0"
