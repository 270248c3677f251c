"""The algorithm: its equations, a problem with a known solution, its state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nxm import ADMM, NM, Unstructured
from nxm.methods.admm.algorithm import kappa_of_rho, rho_at, rho_by_similarity


def weights(seed: int = 0, shape: tuple[int, int] = (8, 16)) -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))}


def reference_iteration(W, Z, U, constraint):
    """Eq. (4) and the dual update as the paper writes them."""
    Z_new = constraint.project(W + U).Z
    return Z_new, U + W - Z_new


def test_starts_at_the_projection_with_no_dual():
    W = weights()
    admm = ADMM(W, NM(2, 4))
    assert torch.equal(admm.Z["a"], NM(2, 4).project(W["a"]).Z)
    assert not admm.U["a"].any()


@pytest.mark.parametrize("constraint", [NM(2, 4), NM(1, 4), Unstructured(0.5)], ids=str)
def test_iterations_equal_the_papers_equations(constraint):
    W = weights()
    admm = ADMM(W, constraint)
    Z, U = admm.Z["a"].clone(), admm.U["a"].clone()
    for seed in range(1, 5):
        with torch.no_grad():
            W["a"].add_(0.3 * torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)))
        admm.iterate_()
        Z, U = reference_iteration(W["a"].detach(), Z, U, constraint)
        torch.testing.assert_close(admm.Z["a"], Z)
        torch.testing.assert_close(admm.U["a"], U)


def test_penalty_gradient_is_the_gradient_of_the_papers_penalty():
    W = weights()
    admm = ADMM(W, NM(2, 4))
    with torch.no_grad():
        W["a"].add_(0.5)
    admm.iterate_()
    rho = 0.3
    (0.5 * rho * (W["a"] - admm.Z["a"] + admm.U["a"]).square().sum()).backward()  # eq. (3) without f
    expected = W["a"].grad.clone()
    W["a"].grad = None
    admm.penalty_gradient_(rho)
    torch.testing.assert_close(W["a"].grad, expected)


def test_penalty_is_added_to_a_gradient_that_is_there():
    W = weights()
    admm = ADMM(W, NM(2, 4))
    W["a"].grad = torch.full((8, 16), 2.0)
    admm.penalty_gradient_(0.1)
    torch.testing.assert_close(W["a"].grad, 2.0 + 0.1 * (W["a"].detach() - admm.Z["a"]))


def test_proximal_steps_of_one_interval_cover_the_stated_share():
    W = weights()
    admm = ADMM(W, NM(2, 4))
    before = (W["a"].detach() - admm.Z["a"]).norm()
    steps, rho = 47, 0.35
    for _ in range(steps):
        admm.proximal_step_(kappa_of_rho(rho, steps))
    left = (W["a"].detach() - admm.Z["a"]).norm() / before
    assert float(left) == pytest.approx(math.exp(-rho), rel=1e-4)


@pytest.mark.parametrize("recipe", ["gradient", "proximal"])
def test_solves_a_quadratic_with_a_known_solution(recipe):
    """min ||W - A||^2 subject to 2:4 is solved by the projection of A."""
    A = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    W = {"a": nn.Parameter(A + 0.3 * torch.randn(4, 8, generator=torch.Generator().manual_seed(4)))}
    admm = ADMM(W, NM(2, 4))
    optimizer = torch.optim.SGD(W.values(), lr=0.05)
    for _ in range(60):
        for _ in range(40):
            optimizer.zero_grad()
            (W["a"] - A).square().sum().backward()
            if recipe == "gradient":
                admm.penalty_gradient_(2.0)
            optimizer.step()
            if recipe == "proximal":
                admm.proximal_step_(0.2)
        record = admm.iterate_()
    assert record.primal_residual < 1e-3
    assert record.similarity == 1.0
    torch.testing.assert_close(admm.Z["a"], NM(2, 4).project(A).Z, atol=2e-3, rtol=0)


def test_a_matched_dual_step_swaps_nothing_that_no_gradient_asks_for():
    """Without a task only the pruned weights need to shrink; a full dual step outruns them and swaps the mask."""
    rho, share = 0.25, kappa_of_rho(0.25, 1)
    records = {}
    for dual_step in (1.0, share):
        admm = ADMM(weights(), NM(2, 4))
        records[dual_step] = []
        for _ in range(6):
            admm.proximal_step_(kappa_of_rho(rho, 1))
            records[dual_step].append(admm.iterate_(dual_step))
    assert all(record.similarity == 1.0 for record in records[share])
    residuals = [record.primal_residual for record in records[share]]
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[-1] < 0.1 * residuals[0]
    assert min(record.similarity for record in records[1.0]) < 0.9
    assert records[1.0][2].primal_residual > records[1.0][0].primal_residual


def test_residuals_and_similarity_are_as_defined():
    W = weights()
    admm = ADMM(W, NM(2, 4))
    Z_before, mask_before = admm.Z["a"].clone(), admm.choices["a"].clone()
    with torch.no_grad():
        W["a"].add_(torch.randn(8, 16, generator=torch.Generator().manual_seed(9)))
    record = admm.iterate_()
    norm = W["a"].norm().item()
    assert record.primal_residual == pytest.approx((W["a"] - admm.Z["a"]).norm().item() / norm, rel=1e-5)
    assert record.dual_residual == pytest.approx((admm.Z["a"] - Z_before).norm().item() / norm, rel=1e-5)
    stayed = (admm.choices["a"] & mask_before).sum() / mask_before.sum()
    assert record.similarity == pytest.approx(stayed.item())
    assert 0.0 < record.similarity < 1.0


def test_rescaling_keeps_the_unscaled_dual():
    W = weights()
    admm = ADMM(W, NM(2, 4))
    admm.iterate_()
    y = 0.2 * admm.U["a"]
    admm.rescale_dual_(0.2 / 0.5)
    torch.testing.assert_close(0.5 * admm.U["a"], y)
    W["a"].grad = None
    admm.penalty_gradient_(1.0)  # the steps use the rescaled dual
    torch.testing.assert_close(W["a"].grad, W["a"].detach() - admm.Z["a"] + admm.U["a"])


def test_state_survives_a_round_trip_and_is_checked():
    W = weights()
    admm = ADMM(W, NM(2, 4))
    with torch.no_grad():
        W["a"].mul_(1.5).add_(0.1)
    admm.iterate_()
    state = {key: value.clone() for key, value in admm.state_dict().items()}
    other = ADMM({"a": nn.Parameter(W["a"].detach().clone())}, NM(2, 4))
    other.load_state_dict(state)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in state.items())
    admm.proximal_step_(0.5)
    other.proximal_step_(0.5)
    assert torch.equal(admm.W["a"], other.W["a"])
    with pytest.raises(ValueError, match=r"U\.a"):
        other.load_state_dict({key: value for key, value in state.items() if key != "U.a"})
    with pytest.raises(ValueError, match="shape"):
        other.load_state_dict(state | {"Z.a": torch.zeros(2, 2)})


def test_weights_that_are_not_fp32_are_refused():
    W = {"a": nn.Parameter(torch.randn(4, 8, dtype=torch.bfloat16))}
    with pytest.raises(TypeError, match=r"a is torch\.bfloat16.*float32"):
        ADMM(W, NM(2, 4))


def test_schedules_end_at_rho_and_never_start_at_zero():
    for schedule in ("constant", "linear", "cosine"):
        values = [rho_at(0.4, schedule, k, 10) for k in range(10)]
        assert values[-1] == pytest.approx(0.4)
        assert values == sorted(values)
        assert values[0] > 0
    with pytest.raises(ValueError, match="schedule"):
        rho_at(0.4, "cubic", 0, 10)


def test_over_relaxation_takes_the_papers_steps_with_a_longer_w():
    W = weights()
    admm = ADMM(W, NM(2, 4))
    Z, U = admm.Z["a"].clone(), admm.U["a"].clone()
    for seed in range(1, 4):
        with torch.no_grad():
            W["a"].add_(0.3 * torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)))
        admm.iterate_(0.4, relaxation=1.6)
        relaxed = 1.6 * W["a"].detach() - 0.6 * Z
        Z_new = NM(2, 4).project(relaxed + U).Z
        U = U + 0.4 * (relaxed - Z_new)
        Z = Z_new
        torch.testing.assert_close(admm.Z["a"], Z)
        torch.testing.assert_close(admm.U["a"], U)


def test_a_weighted_projection_is_the_nearest_point_in_the_weighted_measure():
    """Against brute force over all masks of each group."""
    W = weights(shape=(3, 8))
    v = torch.rand(3, 8, generator=torch.Generator().manual_seed(5)) ** 4
    admm = ADMM(W, NM(2, 4))
    admm.iterate_(importance={"a": v})
    for group, cost, Z in zip(*(t.reshape(-1, 4) for t in (W["a"].detach(), v, admm.Z["a"])), strict=True):
        best = min(
            (float((cost * (group * mask - group).square()).sum()), i)
            for i, mask in enumerate(torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4))
            if mask.sum() == 2
        )
        assert float((cost * (Z - group).square()).sum()) == pytest.approx(best[0], rel=1e-5)
    assert not torch.equal(admm.Z["a"], NM(2, 4).project(W["a"]).Z)


def test_equal_importance_changes_nothing():
    with_it, without = ADMM(weights(), NM(2, 4)), ADMM(weights(), NM(2, 4))
    with_it.iterate_(importance={"a": torch.full((1, 16), 4.0)})  # by input: it broadcasts over the outputs
    without.iterate_()
    assert torch.equal(with_it.Z["a"], without.Z["a"])
    assert torch.equal(with_it.U["a"], without.U["a"])


def test_the_strength_grows_faster_while_the_mask_moves():
    assert rho_by_similarity(0.2, []) == 0.2
    assert rho_by_similarity(0.2, [0.85]) == pytest.approx(0.2 * 1.3)
    assert rho_by_similarity(0.2, [0.85, 0.99, 0.9999]) == pytest.approx(0.2 * 1.3 * 1.2 * 1.1)
    assert rho_by_similarity(0.2, [1.0, 1.0]) == 0.2  # a mask that does not move needs no more
    assert rho_by_similarity(0.2, [0.999] * 100) == 3.0
    assert rho_by_similarity(5.0, [0.9]) == 5.0  # never lowered
