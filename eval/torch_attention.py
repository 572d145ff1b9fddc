"""PyTorch's attention as a baseline, where it is installed: its calls are captured in a CUDA graph."""

import time
from collections.abc import Callable

from kakeya_jax.pallas_kernels.attention.arg_specs import ArgSpec

_CALLS = 20
"""Least calls in one graph."""


def torch_baselines(spec: ArgSpec, repeats: int, copies: int) -> dict[str, Callable[[], list[float]]]:
    """For each of PyTorch's backends a function that measures the seconds of single calls.

    The queries that share a key/value head are passed as so many positions of one query head: grouped decoding then is
    one packed problem. Calls take ``copies`` pairs of K and V in turn. A backend that cannot do so raises
    ``NotImplementedError``. Empty without PyTorch or a GPU.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from torch.nn.attention import SDPBackend  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    return {
        f"dense torch-{name}": lambda backend=backend: _measure(spec, backend, repeats, copies)
        for name, backend in backends.items()
    }


def _measure(spec: ArgSpec, backend: object, repeats: int, copies: int) -> list[float]:
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.attention import sdpa_kernel  # pyright: ignore[reportMissingImports]

    def normal(length: int) -> "torch.Tensor":
        shape = (spec.batch, spec.num_kv_heads, length, spec.head_dim)
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    query = normal(spec.group)
    pairs = [(normal(spec.tokens), normal(spec.tokens)) for _ in range(copies)]
    calls = max(_CALLS, copies)
    attend = torch.nn.functional.scaled_dot_product_attention
    try:
        with sdpa_kernel(backend):
            for _ in range(3):
                attend(query, *pairs[0])
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for index in range(calls):
                    attend(query, *pairs[index % copies])
        found = []
        for _ in range(repeats + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            graph.replay()
            torch.cuda.synchronize()
            found.append((time.perf_counter() - start) / calls)
        return found[1:]
    except RuntimeError as error:  # PyTorch's way to say that a backend does not take these arguments
        raise NotImplementedError(str(error)) from error
    finally:
        del query, pairs
        torch.cuda.empty_cache()
