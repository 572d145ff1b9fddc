"""Tables fitted on training text: collected, fitted, stored."""

if __name__ != "kakeya_jax.calibration":
    raise ImportError(
        f"{__name__!r} is kakeya-jax's folder of that name, not a package; write `import kakeya_jax.calibration`"
    )
