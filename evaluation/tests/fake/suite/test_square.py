"""Two contract tests and an upgrade test that run, one of each that is left out."""

import mmdit
import pytest


@pytest.mark.contract
def test_area():
    assert mmdit.area(3) == 9


@pytest.mark.contract
def test_area_of_a_point():
    assert mmdit.area(0) == 0


@pytest.mark.upgrade
def test_perimeter():
    assert mmdit.perimeter(3) == 12


@pytest.mark.contract
@pytest.mark.gpu
def test_on_a_gpu():
    raise NotImplementedError


@pytest.mark.upgrade
@pytest.mark.slow
def test_large_perimeter():
    assert mmdit.perimeter(1e9) == 4e9
