"""Estimates print the digits that their error allows, and refuse numbers that would look certain."""

import math

import pytest
from scipy.stats import norm, t

from boltzflow.estimate import Estimate


def estimate(value, error, **kwargs):
    return Estimate(value, error, method="test", n_effective=100.0, **kwargs)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-3.2123, 0.0421, "-3.21 ± 0.04"),
        (-3.2123, 0.0352, "-3.212 ± 0.035"),
        (-3.2123, 0.0356, "-3.21 ± 0.04"),
        (1.0, 0.0949, "1.00 ± 0.09"),
        (1.0, 0.0951, "1.00 ± 0.10"),
        (1.0, 0.999, "1.0 ± 1.0"),
        (0.0, 2.0, "0.0 ± 2.0"),
        (-0.0001, 0.5, "0.0 ± 0.5"),
        (12345.678, 234.5, "12350 ± 230"),
        (12345.678, 4321.0, "12000 ± 4000"),
        (0.5, 4.2, "0 ± 4"),
        (0.00123456, 0.0000123, "0.001235 ± 0.000012"),
        (1.23456e-9, 1.2e-11, "(1.235 ± 0.012)e-09"),
        (2.5e-9, 4.4e-8, "(0 ± 4)e-08"),
        (6.02214e23, 4e19, "(6.0221 ± 0.0004)e+23"),
        (1e-3, 99.6, "0 ± 100"),
    ],
)
def test_digits_follow_the_error(value, error, text):
    assert str(estimate(value, error, unit="")) == text


def test_unit_note_and_warnings_are_printed():
    found = estimate(1.0, 0.1, note="relative to gaussian").with_warnings("k-hat 0.83 > 0.7", "k-hat 0.83 > 0.7")
    assert str(found) == "1.00 ± 0.10 kT (relative to gaussian) [k-hat 0.83 > 0.7]"
    assert repr(found) == f"Estimate({found}, test, n_effective=100)"


@pytest.mark.parametrize("error", [0.0, -1.0, math.nan, math.inf])
def test_an_error_that_means_nothing_is_refused(error):
    with pytest.raises(ValueError, match="finite error > 0"):
        estimate(0.0, error)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="finite value"):
        estimate(value, 1.0)


@pytest.mark.parametrize(("degrees", "law"), [(7.0, t(7.0)), (math.inf, norm())])
def test_interval_is_students(degrees, law):
    low, high = estimate(2.0, 0.5, degrees=degrees).interval(0.9)
    assert low == pytest.approx(2.0 - 0.5 * law.ppf(0.95), rel=1e-7)
    assert high == pytest.approx(2.0 + 0.5 * law.ppf(0.95), rel=1e-7)


def test_z_score_combines_errors_and_checks_units():
    a, b = estimate(3.0, 0.3), estimate(1.0, 0.4)
    assert a.z_score(b) == pytest.approx(4.0)
    assert a.z_score(2.4) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="units differ"):
        a.z_score(b.scaled(2.494, "kJ/mol"))
    assert b.scaled(-2.0, "kJ/mol").error == pytest.approx(0.8)
