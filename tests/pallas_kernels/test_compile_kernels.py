"""What ``scripts/compile_kernels.py`` makes of what a compiler prints; compiling takes packages that tests lack."""

from pathlib import Path
from typing import Any

import pytest
from script_modules import load_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "compile_kernels.py"
PRINTED = """
ptxas info    : Compiling entry function 'body' for 'sm_90a'
    0 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 167 registers, used 16 barriers, 1 bytes smem
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   IMMA.16832.S8.S8 R4, R4.ROW, R8.COL, R4 ;
.L_x_2:
        /*0020*/                   IMMA.16816.S8.S8 R4, R4.ROW, R8.COL, R4 ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
.L_x_3:
        /*0050*/                   BRA `(.L_x_3);
"""


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("compile_kernels")


def test_registers_spills_and_loops_are_read(script: Any):
    assert script.describe(PRINTED) == [
        "167 registers, 8 bytes spilled, a loop of 4 instructions with 2 products, in it one of 2 with 1"
    ]


def test_a_folder_without_the_plugin_is_refused(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        script.main([str(tmp_path)])
    assert stopped.value.code == 2
    assert "has no jax_cuda12_plugin" in capsys.readouterr().err
