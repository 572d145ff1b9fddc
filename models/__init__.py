"""Flax Linen decoders that read and write a compressed KV cache."""

if __name__ != "kakeya_jax.models":
    raise ImportError(
        f"{__name__!r} is kakeya-jax's folder of that name, not a package of its own; write `import kakeya_jax.models`"
    )

from kakeya_jax.models.checkpoint import load as load
from kakeya_jax.models.checkpoint import save as save
from kakeya_jax.models.config import ModelConfig as ModelConfig
from kakeya_jax.models.decoder import Decoder as Decoder
from kakeya_jax.models.decoder import DecoderOutput as DecoderOutput
from kakeya_jax.models.dense_cache import DenseCache as DenseCache
from kakeya_jax.models.generate import Generation as Generation
from kakeya_jax.models.generate import generate as generate
from kakeya_jax.models.locate import ModelError as ModelError
from kakeya_jax.models.tokenizer import Tokenizer as Tokenizer
from kakeya_jax.models.tokenizer import load_tokenizer as load_tokenizer
