"""The simulation of bulk answers: what follows from its rules without a computer, and what it may not lose."""

from dataclasses import replace

import pytest

from benchmark_scripts import FOLDER, importable

with importable(FOLDER / "bulk"):
    import simulate as bulk

pytestmark = pytest.mark.integration

CALM = bulk.Fleet(images=10_000, workers=4, seconds=0.5, shard=100, overhead=2, failures=0, slow=0)


def test_without_failures_the_time_is_that_of_the_rounds():
    run = bulk.simulate(CALM)
    assert run.seconds == pytest.approx(100 / 4 * (2 + 100 * 0.5))
    assert (run.lost, run.restarting, run.failures) == (0, 0, 0)
    assert run.waiting == pytest.approx(0)


def test_a_slow_worker_takes_fewer_shards():
    run = bulk.simulate(replace(CALM, slow=0.25, slowness=4, overhead=0))
    # three workers do 1 shard in 50 s, one in 200 s: 3.25 shards each 50 s
    assert run.seconds == pytest.approx(100 / 3.25 * 50, rel=0.08)


@pytest.mark.parametrize(
    "changed", [{"failures": 20.0}, {"driver_failures": 10.0}, {"failures": 20.0, "driver_failures": 10.0}]
)
def test_all_work_is_accounted_for(changed):
    """Worker-seconds of the run: shards once each, lost ones, restarts, waiting."""
    for seed in range(20):
        fleet = replace(CALM, restart=30.0, driver_restart=60.0, **changed)
        run = bulk.simulate(fleet, seed)
        assert run.failures
        done = fleet.shards * (fleet.overhead + fleet.shard * fleet.seconds)
        spent = done + run.lost + run.restarting + run.waiting
        assert spent == pytest.approx(run.seconds * fleet.workers, rel=0.02)


def test_a_failure_loses_half_a_shard_on_average():
    runs = [bulk.simulate(replace(CALM, failures=5.0), seed) for seed in range(200)]
    assert sum(run.lost for run in runs) / sum(run.failures for run in runs) == pytest.approx(26, rel=0.05)


def test_prices_grow_with_the_tiles():
    few, many = (bulk.gpu_seconds("internvl2-2b", "ratio", most, (4032, 3024)) for most in (6, 12))
    assert few[1] < many[1]
    assert few[0] < many[0]
