"""The thread pool, from several Python threads and from forked processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings

import numpy as np
import pytest

import drupe
from interpreter import python


@pytest.fixture(autouse=True)
def restore_threads():
    before = drupe.num_threads()
    yield
    drupe.set_num_threads(before)


def product(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((150, 150)).astype(np.float32) for _ in range(2))
    return a, b, drupe.ops.gemm(a, b)


def test_set_and_get():
    for count in (1, 2, 7):
        drupe.set_num_threads(count)
        assert drupe.num_threads() == count


@pytest.mark.parametrize("count", [0, -1, 1025, 2**31 - 1])
def test_counts_out_of_range(count):
    with pytest.raises(ValueError, match=rf"count is {count}: expected 1 to 1024"):
        drupe.set_num_threads(count)


@pytest.mark.parametrize("count", [2**31, 1.5, "two", None])
def test_what_is_no_count(count):
    with pytest.raises(TypeError):
        drupe.set_num_threads(count)


def test_the_environment_chooses():
    show = "import drupe; print(drupe.num_threads())"
    assert python(show, DRUPE_NUM_THREADS="3") == "3\n"
    default = python(show, DRUPE_NUM_THREADS="")
    assert int(default) == len(os.sched_getaffinity(0))
    for bad in ("0", "many", "99999", "3x"):
        assert python(show, DRUPE_NUM_THREADS=bad) == default


def test_many_more_threads_than_processors():
    expected = product(1)[2]
    drupe.set_num_threads(100)
    for _ in range(5):
        np.testing.assert_array_equal(product(1)[2], expected)


def test_a_system_without_threads_to_give():
    out = python("""
import resource, numpy as np, drupe
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))   # stacks for a few threads
drupe.set_num_threads(1024)
a = np.ones((300, 300), np.float32)
print((drupe.ops.gemm(a, a) == 300).all())
""")
    assert out == "True\n"


def test_python_threads_at_once():
    drupe.set_num_threads(3)
    faults = []

    def work(seed):
        try:
            for i in range(20):
                a, b, y = product(100 * seed + i)
                np.testing.assert_allclose(y, a @ b, rtol=1e-3, atol=1e-3)
                drupe.tensor(np.ones(1000)).numpy()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for i in range(50):  # the pool is replaced while others use it
        drupe.set_num_threads(1 + i % 4)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not faults


def test_gradients_are_recorded_per_thread():
    seen = {}

    def work():
        seen["enabled"] = drupe.is_grad_enabled()

    with drupe.no_grad():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not drupe.is_grad_enabled()
    assert seen["enabled"]


def test_an_error_leaves_the_pool_usable():
    drupe.set_num_threads(2)
    expected = product(2)[2]
    for _ in range(3):
        with pytest.raises(ValueError, match="gemm"):
            drupe.ops.gemm(np.ones((3, 4)), np.ones((3, 4)))
        np.testing.assert_array_equal(product(2)[2], expected)


def fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
        return os.fork()


def test_a_forked_child_computes():
    drupe.set_num_threads(3)
    expected = product(3)[2]  # starts the pool
    for _ in range(5):
        pid = fork()
        if pid == 0:
            os._exit(0 if np.array_equal(product(3)[2], expected) and drupe.num_threads() == 3 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        np.testing.assert_array_equal(product(3)[2], expected)


def test_forks_while_threads_compute():
    drupe.set_num_threads(2)
    expected = product(4)[2]
    stop = threading.Event()

    def work():
        while not stop.is_set():
            product(5)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            pid = fork()
            if pid == 0:
                os._exit(0 if np.array_equal(drupe.ops.gemm(*product(4)[:2]), expected) else 1)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def test_what_other_threads_kept_is_free_in_a_forked_child():
    """A thread that has computed keeps its scratch blocks; in a child there is no such thread."""
    done, stop = threading.Event(), threading.Event()

    def work():
        product(6)
        done.set()
        stop.wait(60)

    drupe.set_num_threads(1)  # the thread itself computes
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert done.wait(60)
        used = drupe.memory_stats()["in_use_bytes"]
        pid = fork()
        if pid == 0:
            drupe.empty_cache()
            after = drupe.memory_stats()
            os._exit(0 if after["in_use_bytes"] == used and after["cached_bytes"] == 0 else 1)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        thread.join(60)


def child_product(seed):
    return float(product(seed)[2].sum())


def test_multiprocessing_by_fork():
    drupe.set_num_threads(2)
    expected = [child_product(seed) for seed in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map_async(child_product, range(4)).get(60) == expected
            pool.close()
            pool.join()


def test_leaving_while_threads_compute():
    out = python("""
import threading, numpy as np, drupe
a = np.ones((400, 400), np.float32)
def work():
    while True:
        drupe.ops.gemm(a, a)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
drupe.ops.gemm(a, a)
print("done")
""")
    assert out == "done\n"
