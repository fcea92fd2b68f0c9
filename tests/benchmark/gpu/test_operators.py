"""What an operator's row says beside its times: memory, sets of inputs, differences; and its work, counted by hand."""

import math
from contextlib import contextmanager

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adder.benchmark.gpu import cases, lengths, operators
from adder.benchmark.gpu.clock import HostClock, Peak
from adder.benchmark.gpu.jobs import Bench
from adder.benchmark.gpu.limits import Work
from adder.benchmark.gpu.results import Results
from adder.ops.dplr_kernel import portable

from .tiny import tiny


def bench_of(clock: HostClock) -> Bench:
    plan = tiny()
    return Bench(plan, clock, Results(plan.to_dict()))


def test_work_counted_by_hand():
    """Exponentials and operations of a forward pass. Whatever else only moves memory."""
    plan = tiny()  # scans of 4 states; heads of 4 channels and 8 states
    found = [
        *cases.scans(plan, {}, (2, 16, 4)),
        *cases.duals(plan, {}, (2, 16, 3)),
        *cases.memory_bound(plan, {}, (2, 16, 4)),
        *cases.kernels(plan, 2, 4, 16),
    ]
    steps = 2 * 16
    counted = {
        "selective_scan": (steps * 4 * 4, 0, "bfloat16"),
        "state_space_dual": (0, steps * 3 * (4 * 8) * 2 * 2, "bfloat16"),  # h += x B, y += C h
        "diagonal_kernel": (0, 2 * 16 * 2 * 2 * 2, "float32"),  # of 2 poles, real parts
        "dplr_kernel": (0, 2 * 16 * 4 * 2, "float32"),  # of 4 real states
    }
    for case in found:
        exponentials, flops, kind = counted.get(case.name, (0, 0, "bfloat16"))
        assert case.work(10, 4, False) == Work(14, exponentials, flops, kind), case.name
        assert case.work(10, 4, True) == Work(38, 2 * exponentials, 3 * flops, kind), case.name
    assert set(counted) < {case.name for case in found}


def test_the_work_of_s4_is_no_more_than_what_is_done():
    h, n, length = 1, 8, 4096
    (case,) = [each for each in cases.kernels(tiny(), h, n, length) if each.name == "dplr_kernel"]
    Abar, Bbar, C = torch.eye(n).expand(h, n, n), torch.ones(h, n), torch.ones(1, h, n)
    with FlopCounterMode(display=False) as counter:
        portable.forward(Abar.double(), Bbar.double(), C.double(), length, torch.float32)
    assert 0.5 * counter.get_total_flops() < case.flops <= counter.get_total_flops()


@pytest.mark.parametrize("length", [512, 4096])
def test_sets_of_inputs_do_not_fit_into_the_cache(length):
    clock = HostClock(torch.device("cpu"))
    clock.cache_bytes = 50 << 20
    inputs = cases.draw_scan(clock.device, (1, length, 1024), 16)
    assert operators.copies_of(clock, inputs) * operators.bytes_of(inputs) > clock.cache_bytes


@pytest.mark.parametrize(("cache_bytes", "sets", "cached"), [(0, 2, False), (1 << 30, 64, True)])
def test_a_row_says_what_is_read_from_the_cache(cache_bytes, sets, cached):
    clock = HostClock(torch.device("cpu"), budget=0.0)
    clock.cache_bytes = cache_bytes
    (case,) = cases.scans(tiny(), {}, (1, 8, 4))
    for row in operators.measure(case, bench_of(clock)):
        assert (row["sets"], row["cached"]) == (sets, cached)


def test_the_memory_is_that_of_the_call_alone():
    """Drawing and the calls before it are not looked at."""
    looking, seen = [False], []

    class Clock(HostClock):
        @contextmanager
        def peak(self):
            looking[0] = True
            yield Peak(7)
            looking[0] = False

    def draw():
        assert not looking[0]
        return (torch.ones(3),)

    def function(x):
        seen.append(looking[0])
        return 2 * x

    case = cases.Case("scan", "1", "adder", function, draw, backward=False)
    clock = Clock(torch.device("cpu"), budget=0.0)
    (row,) = lengths._scan(case, 3, bench_of(clock))
    assert (row["length"], row["peak_bytes"]) == (3, 7)
    assert seen.count(True) == 1


def differences(function) -> float:
    leaves = (torch.ones(3, dtype=torch.float32),)
    (row,) = operators._differences(function, lambda: leaves, bench_of(None))
    return row["difference"]


def test_runs_that_differ_are_seen():
    calls = []

    def growing(x):
        calls.append(x)
        return x * len(calls)

    assert differences(lambda x: 2 * x) == 0.0
    assert differences(growing) >= operators.RUNS - 1
    assert math.isnan(differences(lambda x: x * torch.nan))


def test_other_shapes_are_another_result():
    assert operators.difference(torch.ones(2), torch.ones(1)) == math.inf
