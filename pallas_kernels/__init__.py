"""Operations on packed codes: attention over a compressed cache, and encoding on a GPU.

Importing any of it makes caches encode with its kernels (``kakeya_jax.page_encoders``).
"""

if __name__ != "kakeya_jax.pallas_kernels":
    raise ImportError(
        f"{__name__!r} is kakeya-jax's folder of that name, not a package; write `import kakeya_jax.pallas_kernels`"
    )

from kakeya_jax.pallas_kernels import encode as encode
