"""Sweeps: the same results in one process, in two, and on a dask cluster of two workers."""

import os
from functools import partial

import joblib
import numpy as np
import pytest

from vclib import runtime
from vclib.training import CURVES


def experiment():
    """A function for a sweep. Defined in here, it travels by value: workers need not import this file."""

    def train_one(*, depth, rate, seed):
        import torch

        from vclib import initialization, networks, training

        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(seed)
        sizes = {"depth": depth, "width": 8, "inputs": 6, "outputs": 3, "seeds": 2}
        net = networks.mlp(**sizes, law=initialization.he, activation="relu", biases="uniform", generator=generator)
        data = [(torch.randn(n, 6, generator=generator), torch.arange(n) % 3) for n in (64, 32)]
        chosen = [training.SGD(rate, momentum=0.9), training.Adam(rate)]
        history = training.train(net, chosen, *data, epochs=3, batch=16, seed=seed)
        weights = [torch.cat([w.flatten() for w in (n.a, *n.hidden, n.b, *n.biases)]).numpy() for n in history.networks]
        curves = {name: getattr(history, name) for name in training.CURVES}
        return (depth, rate, seed), curves | {"weights": np.stack(weights)}, os.getpid()

    return train_one


SETTINGS = [
    {"depth": depth, "rate": rate, "seed": seed} for depth in (2, 5) for rate in (0.1, 0.01) for seed in range(3)
]


@pytest.fixture(scope="module")
def alone():
    return runtime.sweep(experiment(), SETTINGS)


def assert_same(found, expected):
    """Equal to the last bit, in the same order."""
    assert [setting for setting, *_ in found] == [setting for setting, *_ in expected]
    for (_, one, _), (_, other, _) in zip(found, expected, strict=True):
        assert one.keys() == other.keys() == {*CURVES, "weights"}
        for name, values in one.items():
            assert values.dtype == other[name].dtype
            np.testing.assert_array_equal(values, other[name])


def slow_first(number):
    def wait(*, place):
        import time

        time.sleep(0.2 if place == 0 else 0.0)
        return number, place

    return wait


def test_one_process_computes_a_sweep_unless_told_otherwise(alone):
    assert {process for *_, process in alone} == {os.getpid()}
    assert [setting for setting, *_ in alone] == [tuple(setting.values()) for setting in SETTINGS]
    assert_same(runtime.sweep(experiment(), SETTINGS[::-1])[::-1], alone)
    assert len({curves["weights"].tobytes() for _, curves, _ in alone}) == len(SETTINGS)


def test_settings_are_arguments_by_name():
    assert runtime.sweep(dict, [{"a": 1, "b": 2}, {}, {"c": 3}]) == [{"a": 1, "b": 2}, {}, {"c": 3}]
    assert runtime.sweep(partial(pow, 2), [{"exp": n, "mod": 5} for n in range(4)]) == [1, 2, 4, 3]
    assert runtime.sweep(pow, []) == []
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        runtime.sweep(slow_first(0), [{"c": 3}])


def test_errors_come_through():
    with pytest.raises(ZeroDivisionError):
        runtime.sweep(lambda n: 1 // n, [{"n": 1}, {"n": 0}])


@pytest.fixture
def two_processes():
    from joblib.externals.loky import get_reusable_executor

    with joblib.parallel_config(backend="loky", n_jobs=2):
        yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def test_two_processes_give_the_same_bits(alone, two_processes):
    found = runtime.sweep(experiment(), SETTINGS)
    assert os.getpid() not in {process for *_, process in found}
    assert_same(found, alone)
    order = runtime.sweep(slow_first(5), [{"place": place} for place in range(6)])
    assert order == [(5, place) for place in range(6)]


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def cluster():
    from distributed import Client, LocalCluster

    sizes = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**sizes) as local, Client(local), joblib.parallel_config(backend="dask"):
        workers = {worker.pid for worker in local.workers.values()}
        yield workers
    assert len(workers) == 2
    assert not any(alive(process) for process in workers)


def test_a_dask_cluster_gives_the_same_bits(alone, cluster):
    found = runtime.sweep(experiment(), SETTINGS)
    assert {process for *_, process in found} <= cluster
    assert_same(found, alone)
    order = runtime.sweep(slow_first(5), [{"place": place} for place in range(6)])
    assert order == [(5, place) for place in range(6)]
