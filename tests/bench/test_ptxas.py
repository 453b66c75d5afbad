"""What ptxas prints is read right, and what must not be is refused."""

from __future__ import annotations

from drupe.bench.ptxas import defects, parse

TEXT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstPf' for 'sm_90a'
ptxas info    : Function properties for _Z5firstPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 1 barriers, 128 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function '_Z6secondPf' for 'sm_90a'
ptxas info    : Function properties for _Z6secondPf
    24 bytes stack frame, 20 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def test_each_kernel_has_its_figures():
    (first, second), complaints = parse(TEXT, "x.cu", "sm_90a")
    assert complaints == []
    assert (first["registers"], first["shared_bytes"], first["stack_bytes"]) == (20, 128, 0)
    assert (second["registers"], second["shared_bytes"], second["stack_bytes"]) == (255, 0, 24)
    assert (second["spill_store_bytes"], second["spill_load_bytes"]) == (20, 16)
    assert defects(first) == []
    (defect,) = defects(second)
    assert "20 bytes of spill stores" in defect


def test_a_small_stack_is_left_to_sin_and_cos():
    kernel = {"file": "unary.cu", "arch": "sm_80", "kernel": "map_kernel<Forward<(Unary)12, double>>"}
    kernel |= {"stack_bytes": 40, "spill_store_bytes": 8, "spill_load_bytes": 8}
    assert defects(kernel) == []
    assert defects(kernel | {"stack_bytes": 400}) != []
    assert defects(kernel | {"kernel": "map_kernel<Forward<(Unary)5, double>>"}) != []


def test_warnings_and_serialised_wgmma_are_complaints():
    text = (
        "x.cu(3): warning #177-D: variable was declared but never referenced\n"
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to …\n"
    )
    assert len(parse(text, "x.cu", "sm_90a")[1]) == 2


def test_a_kernel_may_have_error_in_its_name():
    text = "ptxas info    : Compiling entry function '_Z6reportP11ErrorRecord' for 'sm_80'\n"
    assert parse(text, "x.cu", "sm_80")[1] == []
    assert len(parse("x.cu(3): error: identifier is undefined\nerror: nvcc exited with 1\n", "x.cu", "sm_80")[1]) == 2
