"""2:4 layers as cuSPARSELt is called, on a stand-in that refuses what it refuses. The kernels themselves need a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nxm.errors import UserError
from nxm.export import fp8, int8
from nxm.export.cusparselt import (
    DEFAULT_PLAN,
    SEARCHES,
    Linear24,
    Plan,
    compress,
    multiply,
    search_nothing,
    search_plain,
    why_not,
)
from nxm.sets.nm import NM
from stand_in import FOUND, cusparselt_on_cpu

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _stand_in():
    with cusparselt_on_cpu():
        yield


def two_of_four(out: int, inside: int, dtype: torch.dtype = BF16) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(inside, out)
    with torch.no_grad():
        linear.weight.copy_(NM(2, 4).project(linear.weight).Z)
    return linear.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("rows", [1, 15, 16, 33])
@pytest.mark.parametrize("bias", [True, False])
def test_a_2of4_layer_is_its_dense_self(rows, bias):
    linear = two_of_four(48, 64)
    if not bias:
        linear.bias = None
    x = torch.randn(rows, 64, dtype=BF16)
    found = Linear24(linear)(x)
    assert found.dtype == BF16
    torch.testing.assert_close(found, linear(x), rtol=2e-2, atol=2e-2)


def test_batches_keep_their_shape_and_layout():
    """Attention takes its fast kernels only where the last dimension is contiguous."""
    x = torch.randn(3, 5, 64, dtype=BF16)
    for layer in (Linear24(two_of_four(32, 64)), int8.Int8Linear(two_of_four(32, 64), sparse=True)):
        found = layer(x)
        assert found.shape == (3, 5, 32)
        assert found.stride(-1) == 1


@pytest.mark.parametrize("view", ["transposed", "strided"])
def test_inputs_in_another_layout_are_not_read_as_another_matrix(view):
    linear = two_of_four(32, 64)
    x = torch.randn(64, 32, dtype=BF16).t() if view == "transposed" else torch.randn(32, 128, dtype=BF16)[:, ::2]
    torch.testing.assert_close(multiply(compress(linear.weight), x), x @ linear.weight.t())


def test_more_than_two_values_in_a_group_are_refused_and_not_dropped():
    W = torch.ones(32, 64, dtype=BF16)
    for values in (W, W.to(torch.int8), W.to(torch.float8_e4m3fn)):
        with pytest.raises(UserError, match="layer 3 is not 2:4: a group of four has more than two values"):
            compress(values, "layer 3")


def test_negative_zeros_do_not_count_as_values():
    W = torch.tensor([1.0, -2.0, -0.0, 0.0]).repeat(32, 16).to(BF16)
    packed = compress(W)  # the stand-in keeps W as it is given to the packer
    assert not torch.signbit(packed[packed == 0]).any()


def test_limits_are_named():
    assert why_not((48, 64), BF16) is None
    assert why_not((40, 64), BF16) == "cuSPARSELt takes multiples of 16 x 16, not 40 x 64"
    assert why_not((48, 64), torch.int8) == "cuSPARSELt takes multiples of 32 x 32, not 48 x 64"
    assert why_not((48, 64), torch.float32) == "cuSPARSELt has no 2:4 kernel for torch.float32"


def test_the_search_decides_the_algorithm_and_a_known_plan_is_taken_over():
    linear = two_of_four(32, 64)
    assert Linear24(linear).plan == Plan(FOUND)
    assert Linear24(linear, plan=Plan(0, 2, 1)).plan == Plan(0, 2, 1)
    packed, x = compress(linear.weight), torch.randn(32, 64, dtype=BF16)
    assert search_nothing(packed, x) == DEFAULT_PLAN
    assert search_plain(packed, x) in (Plan(0), Plan(FOUND))  # the algorithms that the stand-in has
    assert len(SEARCHES) == 3


@pytest.mark.parametrize("rows", [1, 32, 33])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_integers_are_multiplied_as_their_dense_self(rows, dtype):
    """In fp32 to the bit, since sums of integers are exact; in bf16 the sums are rounded once more."""
    linear = two_of_four(32, 64, dtype)
    x = torch.randn(rows, 64, dtype=dtype)
    sparse, dense = int8.Int8Linear(linear, sparse=True)(x), int8.Int8Linear(linear)(x)
    assert sparse.dtype == dtype
    if dtype == torch.float32:
        assert torch.equal(sparse, dense)
    torch.testing.assert_close(sparse, dense, rtol=2e-2, atol=2e-2)


def test_fp8_rows_have_their_largest_magnitude_at_448_and_zeros_stay():
    torch.manual_seed(0)
    W = NM(2, 4).project(torch.randn(64, 128)).Z * torch.logspace(-3, 3, 64)[:, None]
    W[7] = 0.0
    values, scale = fp8.quantise(W)
    assert values.dtype == torch.float8_e4m3fn
    largest = values.float().abs().amax(dim=1)
    assert (largest[W.abs().amax(dim=1) > 0] == 448).all()
    assert NM(2, 4).contains(values.float())
    assert (values[7].float() == 0).all()
    # e4m3 has three bits of mantissa: half a step is 1/16 of the value, or of the smallest normal number
    assert ((values.float() * scale - W).abs() <= W.abs() / 16 + scale * 2**-6 / 16).all()


@pytest.mark.parametrize("rows", [1, 32, 33])
def test_an_fp8_layer_is_near_its_source_and_2of4_as_near_as_dense(rows):
    linear = two_of_four(32, 64)
    x = torch.randn(rows, 64, dtype=BF16)
    exact = F.linear(x.double(), linear.weight.double(), linear.bias.double())
    errors = {
        kernel: float((fp8.Fp8Linear(linear, kernel)(x) - exact).norm() / exact.norm())
        for kernel in ("dense", "cusparselt")
    }
    assert 0 < errors["dense"] < 0.05
    assert errors["cusparselt"] < 2 * errors["dense"]


def test_torchaos_kernel_is_refused_with_the_reason_where_it_cannot_run():
    with pytest.raises((UserError, NotImplementedError), match=r"matrix: |torchao"):
        fp8.Fp8Linear(two_of_four(32, 64), "cutlass")
