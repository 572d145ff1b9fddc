"""Encoding of pages on a GPU; importing this makes every cache encode with it there (``kakeya_jax.page_encoders``)."""

from kakeya_jax.codecs.klt import Klt
from kakeya_jax.codecs.turboquant import TurboQuant
from kakeya_jax.page_encoders import register_page_encoder
from kakeya_jax.pallas_kernels.encode.klt_pages import KLT_PAGES
from kakeya_jax.pallas_kernels.encode.turboquant_pages import TURBOQUANT_PAGES

register_page_encoder(Klt, KLT_PAGES)
register_page_encoder(TurboQuant, TURBOQUANT_PAGES)
