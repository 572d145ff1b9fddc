"""Quality, bytes and speed, measured through the cache that users get."""

if __name__ != "kakeya_jax.eval":
    raise ImportError(
        f"{__name__!r} is kakeya-jax's folder of that name, not a package; write `import kakeya_jax.eval`"
    )
