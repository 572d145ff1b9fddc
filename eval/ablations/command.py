"""What ``kakeya ablate`` calls: the list, one measurement, and its table."""

from pathlib import Path
from typing import Any

from kakeya_jax.eval.ablations import table
from kakeya_jax.eval.ablations.results import AblationResult
from kakeya_jax.eval.ablations.run import Request as Request
from kakeya_jax.eval.ablations.run import parse_part as parse_part
from kakeya_jax.eval.ablations.run import run_request
from kakeya_jax.eval.ablations.table import result_table as result_table
from kakeya_jax.eval.outputs import check_output_file
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.locate import DEMO, find_folder


def listing() -> Any:
    """Every ablation with its question, cells and rough cost."""
    return table.listing_table(table.listing(ModelConfig.from_folder(find_folder(DEMO))))


def measure(request: Request, *, markdown: Path | None = None, quiet: bool = False) -> AblationResult | None:
    """Measures what was asked for and writes the files asked for; None for a part.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    for option, path in (("--json", request.json_path), ("--markdown", markdown)):
        if path is not None:
            check_output_file(option, path)
    result = run_request(request, quiet=quiet)
    if result is None:
        return None
    if request.json_path is not None:
        result.save(request.json_path)
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(table.markdown_table(result))
    return result
