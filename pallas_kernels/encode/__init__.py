"""Encoding of pages on a GPU; importing this makes every cache encode with it there (``kakeya_jax.page_encoders``).

``TURBOQUANT_PAGES`` is not registered: its kernel has been compiled for an H100, but has not run on one. It waits for
``pytest -m gpu tests/pallas_kernels/test_turboquant_encode.py``; who wants it before then registers it.
"""

from kakeya_jax.codecs.klt import Klt
from kakeya_jax.page_encoders import register_page_encoder
from kakeya_jax.pallas_kernels.encode.klt_pages import KLT_PAGES
from kakeya_jax.pallas_kernels.encode.turboquant_pages import TURBOQUANT_PAGES as TURBOQUANT_PAGES

register_page_encoder(Klt, KLT_PAGES)
