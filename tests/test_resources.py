"""SPEC K3, K4: what kernels of the tuning tables take of each architecture, compiled here, within their budget. All of
them, which takes minutes, is `python -m mmdit.deploy.aot --check`.
"""

from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from tests.quick import slow_unless

pytestmark = pytest.mark.upgrade

BY_ARCH = pytest.mark.parametrize("arch", slow_unless(lambda arch: arch == 90, (80, 90, 100)))
SAMPLE = {"qkv_kernel", "joint_attention_kernel", "rows_kernel", "gated_residual_kernel"}


def planned(arch: int, dtype: str = "bfloat16") -> list[Any]:
    plan = import_module("mmdit.deploy.plan")
    return list(plan.plan(arch, plan.Sizes(batches=(1, 128), dtypes=(dtype,))).values())


def excess(arch: int, launch: Any) -> list[str]:
    """What the launch's kernel takes beyond its budget."""
    budget, build = import_module("mmdit.deploy.budget"), import_module("mmdit.deploy.build")
    took = build.resources(build.compile_planned(launch, arch))
    return budget.excess(budget.budget_key(arch, launch.specialisation), took, budget.read_budget())


def named(launch: Any) -> str:
    return launch.specialisation.kernel.partition(":")[2]


@BY_ARCH
def test_a_sample_of_the_kernels_is_within_its_budget(mmdit: ModuleType, arch: int) -> None:
    last = {named(launch): launch for launch in planned(arch) if named(launch) in SAMPLE}
    assert len(last) >= 3
    assert [line for launch in last.values() for line in excess(arch, launch)] == []


@BY_ARCH
def test_every_kernel_of_the_tables_has_a_budget(mmdit: ModuleType, arch: int) -> None:
    budget, plan = import_module("mmdit.deploy.budget"), import_module("mmdit.deploy.plan")
    limits = budget.read_budget()
    sizes = plan.Sizes(batches=(1, 4, 32, 40, 128))
    keys = {budget.budget_key(arch, specialisation) for specialisation in plan.plan(arch, sizes)}
    assert sorted(keys - limits.keys()) == []


def test_a_tile_enlarged_until_it_spills_is_beyond_the_budget(mmdit: ModuleType) -> None:
    launch = next(each for each in planned(90) if named(each) == "joint_attention_kernel")
    assert excess(90, launch) == []
    at = len(launch.arguments) - 5  # QUERIES, before KEYS, BLOCK, STAGES and PDL
    arguments = list(launch.arguments)
    arguments[at] *= 8
    assert [line for line in excess(90, launch._replace(arguments=tuple(arguments))) if "spilled" in line]


def test_products_that_leave_the_tensor_cores_are_beyond_the_budget(mmdit: ModuleType) -> None:
    budget, build = import_module("mmdit.deploy.budget"), import_module("mmdit.deploy.build")
    limits = {"key": budget.Limit(128, 0, 1024, True)}
    assert budget.excess("key", build.Resources(128, 0, 1024, 8), limits) == []
    assert "tensor cores" in budget.excess("key", build.Resources(128, 0, 1024, 0), limits)[0]
    assert "expected an entry" in budget.excess("another", build.Resources(1, 0, 0, 8), limits)[0]
