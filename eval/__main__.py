"""``python -m kakeya_jax.eval`` is the ``kakeya`` command."""

from kakeya_jax.eval.cli import main

if __name__ == "__main__":
    main()
