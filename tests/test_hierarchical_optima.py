"""The exact solver of the linear MHVAE and what it reports (its agreement with theory: test_theory_hierarchical)."""

import pytest
import torch

from collapse_lib.hierarchical_optima import MhvaeSetting, active_coordinates, compare, frame, pairs_by_case
from collapse_lib.theory import hierarchical_theorems as theorems
from collapse_lib.theory.hierarchical import Weighting

THETA = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)


@pytest.fixture(scope="module")
def theorem_3():
    """Two active modes and one that has collapsed."""
    return compare(MhvaeSetting(3, Weighting(beta_2=1.3), sigma_1=0.8), THETA, seed=0)


def test_the_closed_form_belongs_to_what_is_learned():
    weighting = Weighting(1.0, 1.3)
    loss = {
        (0.8, None): theorems.mhvae_sigma2_learnable(THETA, weighting, 0.8, 3).loss,
        (0.8, 0.7): theorems.mhvae_both_fixed(THETA, weighting, 0.8, 0.7, 3).loss,
        (None, 0.7): theorems.mhvae_sigma1_learnable(THETA, weighting, 0.7, 3).loss,
    }
    assert {each: MhvaeSetting(3, weighting, *each).optimum(THETA).loss for each in loss} == loss
    with pytest.raises(ValueError, match="may have no minimum"):
        MhvaeSetting(3, weighting).optimum(THETA)
    with pytest.raises(TypeError, match="must be floats or None"):
        MhvaeSetting(3, weighting, sigma_1="0.8").optimum(THETA)


def test_a_comparison_reports_its_minimum(theorem_3):
    solved, optimum = theorem_3.solved, theorem_3.optimum
    assert optimum.cases == "aac"
    assert theorem_3.errors.keys() == {"lam", "omega", "sigma_2"}
    assert theorem_3.relative_error == max(theorem_3.errors.values()) < 1e-4
    assert theorem_3.loss_gap == pytest.approx(0, abs=1e-8)
    torch.testing.assert_close(solved.kl_2.sort(descending=True)[0], optimum.kl_2, atol=1e-4, rtol=0)
    torch.testing.assert_close(solved.information.sort(descending=True)[0], optimum.information, atol=1e-4, rtol=0)
    assert active_coordinates(theorem_3) == 2
    assert solved.sigma_1.tolist() == pytest.approx([0.8] * 3)
    assert theorem_3.assertable()
    assert not theorem_3.assertable(margin=10)


def test_pairs_are_mode_by_mode(theorem_3):
    pairs = pairs_by_case([theorem_3], "sigma_2")
    assert {label: len(theory) for label, (theory, _) in pairs.items()} == {"case a": 2, "case c": 1}
    for theory, learned in pairs.values():
        assert learned == pytest.approx(theory, abs=1e-3)
    assert pairs["case c"][0] == [1.0]


def test_a_frame_has_a_row_a_comparison(theorem_3):
    rows = frame([theorem_3, theorem_3])
    assert len(rows) == 2
    assert rows.setting[0] == "d 3, β₁ 1, β₂ 1.3, σ₁ 0.8"
    assert rows["error of omega"][0] == theorem_3.errors["omega"]


def test_seeds_differ_and_a_seed_is_itself():
    setting, options = MhvaeSetting(2, Weighting(), 0.8, 0.7), {"adam_steps": 5, "iterations": 1, "restarts": 1}
    first, again, other = (compare(setting, THETA, seed, **options).solved.weights.V1 for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_kick_leaves_the_saddle_where_z2_died_before_z1_had_learned():
    """With a small beta_1 the young z2 collapses on every mode, although its optimum keeps the first one."""
    setting = MhvaeSetting(2, Weighting(0.05, 4.0, 0.5, 0.5), sigma_1=0.5)
    theta = torch.tensor([10.9, 2.4], dtype=torch.float64)
    options = {"iterations": 200, "restarts": 2}
    stuck, found = (compare(setting, theta, seed=0, kick_std=kick, **options) for kick in (0.0, 0.01))
    assert found.optimum.cases == "ac"
    assert float(stuck.solved.omega[0]) < 1e-3
    assert stuck.loss_gap > 1e-4
    assert found.relative_error < 1e-5
