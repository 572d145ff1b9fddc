"""Cells whose decode steps are judged by the gates."""

import dataclasses

import numpy as np
import pytest

from kakeya_jax.eval.ablations.integer_gates import CodedPastCell
from kakeya_jax.eval.ablations.selection import SelectionCell


def test_cells_are_judged(tiny_setup):
    exact = SelectionCell(label="everything", name="all", share=1.0).measure(tiny_setup)
    assert exact["implementation_passes"]
    assert exact["read_share"] == 1.0
    assert exact["steps"] == exact["tokens_scored"] == 2 * 96
    little = SelectionCell(label="little", name="recent_sink", share=0.125).measure(tiny_setup)
    assert not little["implementation_passes"]
    assert 0.1 < little["read_share"] < 0.25
    coded = CodedPastCell(label="int8", text="both=int8(block_size=16),sinks=0,recent=1").measure(tiny_setup)
    assert coded["coded_bits"] == pytest.approx(8.5)  # 16 bits for each of 32 values
    assert 0 < coded["logit_mse"]["worst"] < little["logit_mse"]["worst"]


def test_contexts_that_chunks_do_not_divide_are_refused(tiny_setup):
    with pytest.raises(ValueError, match="context=100 must be a multiple of two chunks, 64 tokens"):
        SelectionCell(label="", name="all", share=1.0).measure(dataclasses.replace(tiny_setup, context=100))


@pytest.mark.parametrize("name", ["global_block_mass", "chunk_means", "active_chunks"])
def test_selectors_read_less_and_stay_finite(tiny_setup, name: str):
    row = SelectionCell(label=name, name=name, share=0.5).measure(tiny_setup)
    assert 0.2 < row["read_share"] < 0.9
    assert np.isfinite(row["logit_mse"]["worst"])
