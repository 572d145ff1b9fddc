"""No compression: values in bfloat16, the reference every ratio is measured against."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp

from kakeya_jax.codec import CodecConfig
from kakeya_jax.pytree import payload_field, pytree_dataclass, static_field
from kakeya_jax.typing import Array, Float, StreamName


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdentityConfig(CodecConfig):
    """Stores bfloat16 values: 16 bits each, no side information."""

    name: ClassVar[str] = "identity"
    source: ClassVar[str] = "uncompressed baseline"

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Identity":
        """See ``CodecConfig.build``."""
        del head_dim, layer, stream, tables
        return Identity(config=self)


@pytree_dataclass
class IdentityCode:
    """A block as bfloat16 ``[n, d]``."""

    values: Array = payload_field()


@pytree_dataclass
class Identity:
    """The codec of ``IdentityConfig``."""

    config: IdentityConfig = static_field()

    def encode(self, block: Float[Array, "n d"], key: Array | None = None) -> IdentityCode:
        """Rounds to bfloat16, to nearest even."""
        del key
        return IdentityCode(values=block.astype(jnp.bfloat16))

    def decode(self, code: IdentityCode) -> Float[Array, "n d"]:
        """The stored values as float32."""
        return code.values.astype(jnp.float32)
