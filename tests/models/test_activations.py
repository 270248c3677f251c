"""Inputs of Linear layers on an integer grid: its formula, its gradient, its ranges, and their place in a config."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.ao.quantization.observer import MovingAverageMinMaxObserver

from nxm import UserError
from nxm.models.activations import QuantisedInputs, grid, quantise_inputs, read_ranges, release_inputs, write_ranges
from tiny_training import new_model, tiny_config

ENDS = st.tuples(st.floats(-100, 0, width=32), st.floats(0, 100, width=32)).filter(
    lambda ends: ends[1] - ends[0] > 1e-3
)


class Net(nn.Module):
    """One Linear layer that returns its input, as it reached the product."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def rounding(ends: tuple[float, float], bits: int) -> tuple[Net, QuantisedInputs]:
    net = Net().eval()
    inputs = QuantisedInputs(net, ["layer.weight"], bits, 0.1)
    inputs.load({"layer.weight": torch.tensor(ends)})
    inputs.active = True
    return net, inputs


@given(ENDS, st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_an_input_is_the_nearest_point_of_the_grid(ends, bits, seed):
    x = 120 * torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    net, _ = rounding(ends, bits)
    found = net(x).detach().double().numpy()
    scale, zero_point = (value.double().numpy() for value in grid(*map(torch.tensor, ends), bits))
    points = scale * (np.arange(2**bits) - zero_point)
    distance = np.abs(points - x.double().numpy()[..., None])
    assert np.allclose(np.abs(found - x.numpy()), distance.min(axis=-1), rtol=1e-5, atol=1e-5 * scale)
    assert (np.abs(points - found[..., None]).min(axis=-1) <= 1e-5 * np.abs(points).max()).all()
    assert not net(torch.zeros(1, 4)).any()  # zero is on the grid


def test_the_gradient_passes_inside_the_grid_alone():
    net, _ = rounding((-1.0, 1.0), 4)
    x = torch.tensor([[-5.0, -0.4, 0.3, 5.0]], requires_grad=True)
    net(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]


def test_ranges_follow_the_inputs_as_pytorchs_observer_has_them():
    net = Net().train()
    inputs = QuantisedInputs(net, ["layer.weight"], 8, 0.1)
    inputs.active = True
    observer = MovingAverageMinMaxObserver(averaging_constant=0.1, dtype=torch.quint8)
    for step in range(6):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        net(x)
        inputs.step()
        observer(x)
    low, high = inputs.ranges()["layer.weight"]
    assert (low, high) == pytest.approx((float(observer.min_val), float(observer.max_val)))
    scale, zero_point = observer.calculate_qparams()
    ours = grid(torch.tensor(low), torch.tensor(high), 8)
    assert float(ours[0]) == pytest.approx(float(scale))
    assert int(ours[1]) == int(zero_point)


def test_parts_of_a_step_move_a_range_once_and_toward_all_that_they_had():
    net = Net().train()
    inputs = QuantisedInputs(net, ["layer.weight"], 8, 0.5)
    inputs.load({"layer.weight": torch.tensor([-1.0, 1.0])})
    inputs.active = True
    net(torch.tensor([[-3.0, 0.0, 0.0, 0.5]]))
    net(torch.tensor([[-2.0, 0.0, 0.0, 5.0]]))
    assert inputs.ranges()["layer.weight"] == (-1.0, 1.0)  # the same for all parts
    inputs.step()
    assert inputs.ranges()["layer.weight"] == (-2.0, 3.0)
    inputs.step()
    assert inputs.ranges()["layer.weight"] == (-2.0, 3.0)


def test_a_layer_is_rounded_by_one_alone():
    net, first = rounding((-1.0, 1.0), 2)
    x = torch.tensor([[0.3, -0.2, 0.9, 0.1]])
    second = QuantisedInputs(net, ["layer.weight"], 8)
    assert torch.equal(net(x), x)
    first.remove()  # has no layer any more
    second.active = True
    release_inputs(net, but=second.training)
    assert len(net.layer._forward_pre_hooks) == 0
    kept = QuantisedInputs(net, ["layer.weight"], 8, training="mine")
    release_inputs(net, but="mine")
    assert len(net.layer._forward_pre_hooks) == 1
    kept.remove()


def test_ranges_stay_without_gradients_in_eval_mode_and_before_they_are_active():
    net = Net().train()
    inputs = QuantisedInputs(net, ["layer.weight"], 8, 0.5)
    x = torch.randn(3, 4)
    assert torch.equal(net(x), x)
    assert inputs.ranges() == {}
    inputs.active = True
    with torch.no_grad():
        assert torch.equal(net(x), x)  # no range yet
    net(x)
    inputs.step()
    known = inputs.ranges()
    net.eval()(10 * x)
    with torch.no_grad():
        net.train()(10 * x)
    inputs.step()
    assert inputs.ranges() == known
    inputs.remove()
    assert torch.equal(net(x), x)


def test_a_config_names_bits_and_ranges():
    config = tiny_config()
    assert read_ranges(config) is None
    write_ranges(config, 8, {"a.weight": (-1.5, 0.1)})
    found = read_ranges(type(config).from_dict(config.to_dict()))
    assert found is not None
    assert (found.bits, found.ranges) == (8, {"a.weight": (-1.5, 0.1)})


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("int8", "it is int8"),
        ({"bits": 8}, "it is"),
        ({"bits": 9, "ranges": {}}, "bits is 9"),
        ({"bits": "8", "ranges": {}}, "bits is '8'"),
        ({"bits": 8, "ranges": {"a": [1.0, 2.0]}}, r"the range of a is \[1.0, 2.0\], which is not finite"),
        ({"bits": 8, "ranges": {"a": [-1.0, float("inf")]}}, r"the range of a is .-1.0, inf"),
        ({"bits": 8, "ranges": {"a": 1.0}}, "it is"),
    ],
)
def test_what_is_no_range_is_named(written, problem):
    with pytest.raises(UserError, match=rf"nxm_activations should be .*, but {problem}"):
        read_ranges(tiny_config(nxm_activations=written))


def test_a_model_without_ranges_or_with_those_of_another_is_refused():
    model = new_model()
    with pytest.raises(UserError, match="has no nxm_activations"):
        quantise_inputs(model)
    write_ranges(model.config, 8, {"other.weight": (-1.0, 1.0)})
    with pytest.raises(UserError, match=r"names 'other\.weight'"):
        quantise_inputs(model)
    inputs = QuantisedInputs(model, ["classifier.weight"], 8, 0.1)
    with pytest.raises(UserError, match=r"first a\.weight"):
        inputs.load({"a.weight": torch.zeros(2)})
