"""Shapes of decode attention that are measured, by name."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArgSpec:
    """One decode step of one layer.

    Attributes:
        batch: rows.
        num_kv_heads: key/value heads.
        group: query heads that read one key/value head.
        head_dim: of a vector.
        tokens: coded tokens in each row; the exact ones come on top.
        goal: whether it counts towards the goals; short ones are only reported.
    """

    batch: int
    num_kv_heads: int
    group: int
    head_dim: int
    tokens: int
    goal: bool = True

    @property
    def dense_nbytes(self) -> int:
        """Of the coded tokens' K and V in bfloat16."""
        return 4 * self.batch * self.num_kv_heads * self.tokens * self.head_dim


ARG_SPECS = {
    "b1-k8-g4-128k": ArgSpec(batch=1, num_kv_heads=8, group=4, head_dim=128, tokens=131072),
    "b8-k8-g4-32k": ArgSpec(batch=8, num_kv_heads=8, group=4, head_dim=128, tokens=32768),
    "b32-k8-g4-8k": ArgSpec(batch=32, num_kv_heads=8, group=4, head_dim=128, tokens=8192),
    "b4-k32-g1-16k": ArgSpec(batch=4, num_kv_heads=32, group=1, head_dim=128, tokens=16384),
    "b8-k8-g8-32k": ArgSpec(batch=8, num_kv_heads=8, group=8, head_dim=128, tokens=32768),
    "b16-k8-g8-d64-32k": ArgSpec(batch=16, num_kv_heads=8, group=8, head_dim=64, tokens=32768),
    "b1-k8-g4-8k": ArgSpec(batch=1, num_kv_heads=8, group=4, head_dim=128, tokens=8192, goal=False),
    "b1-k8-g4-16k": ArgSpec(batch=1, num_kv_heads=8, group=4, head_dim=128, tokens=16384, goal=False),
    "b1-k8-g8-8k": ArgSpec(batch=1, num_kv_heads=8, group=8, head_dim=128, tokens=8192, goal=False),
    "b1-k8-g8-16k": ArgSpec(batch=1, num_kv_heads=8, group=8, head_dim=128, tokens=16384, goal=False),
    "tiny": ArgSpec(batch=2, num_kv_heads=2, group=2, head_dim=64, tokens=512, goal=False),
}
"""Of 8-billion-parameter Llama and Qwen shapes at several batches and contexts; ``tiny`` is for machines without a
GPU."""

LOGITS_SPECS = ("b1-k8-g8-8k", "b1-k8-g8-16k")
"""Shapes at which logits alone are measured."""

USUAL_SPECS = tuple(name for name in ARG_SPECS if name not in ("tiny", *LOGITS_SPECS))
"""Shapes that are measured unless others are named."""
