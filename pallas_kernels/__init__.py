"""Operations that read packed codes: attention over a compressed cache."""

if __name__ != "kakeya_jax.pallas_kernels":
    raise ImportError(
        f"{__name__!r} is kakeya-jax's folder of that name, not a package; write `import kakeya_jax.pallas_kernels`"
    )
