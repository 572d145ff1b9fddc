import subprocess
import sys
from pathlib import Path


def test_importing_the_models_needs_neither_torch_nor_the_hub():
    heavy = ("torch", "transformers", "huggingface_hub")
    code = f"import sys, kakeya_jax.models; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_bare_name_is_refused():
    repository = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", "import models"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "write `import kakeya_jax.models`" in result.stderr
