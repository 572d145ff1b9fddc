"""Programs are let go when they are many, and only then."""

import compiled_programs
import jax
import jax.numpy as jnp
import pytest


@pytest.mark.skipif(not compiled_programs._MAPPINGS.exists(), reason="only Linux says how many mappings there are")
def test_programs_are_let_go_when_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        traces.append(x.shape)
        return 2 * x

    double(jnp.ones(3))
    monkeypatch.setattr(compiled_programs, "MOST", 10**9)
    assert not compiled_programs.release_programs()
    double(jnp.ones(3))
    assert len(traces) == 1
    monkeypatch.setattr(compiled_programs, "MOST", 1)
    assert compiled_programs.release_programs()
    double(jnp.ones(3))
    assert len(traces) == 2
