"""Entropy coding of small integers under static tables, page by page: host code in numpy.

Every page is decoded on its own; many pages are coded together, which is where the speed comes from.
"""

from kakeya_jax.entropy.frequencies import integer_frequencies as integer_frequencies
from kakeya_jax.entropy.pages import CodedPages as CodedPages
from kakeya_jax.entropy.pages import decode_groups as decode_groups
from kakeya_jax.entropy.pages import decode_pages as decode_pages
from kakeya_jax.entropy.pages import encode_groups as encode_groups
from kakeya_jax.entropy.pages import encode_pages as encode_pages
from kakeya_jax.entropy.rans import LANES as LANES
from kakeya_jax.entropy.rans import CodingTables as CodingTables
