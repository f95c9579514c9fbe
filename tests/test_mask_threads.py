"""Masks that threads draw: after a fork, in a thread that outlives the main one, at exit. Two CPUs are not needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnndrop
from rnndrop import mask

ROOT = Path(__file__).parent.parent
ROWS, COLUMNS = 2000, 512  # four shares: a pool draws them

PRELUDE = f"""
import torch
torch.set_num_threads(2)
from rnndrop import mask

def checksum():  # without PyTorch's own threads, which do not survive a fork
    return int((mask.keep_bytes(1, {ROWS}, {COLUMNS}, 1 << 15, 0).numpy() != 0).sum())
"""


def run(code, timeout=120):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, env=environment, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Error" not in done.stderr, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def expected():
    return str(int((rnndrop.dropout_mask(1, ROWS, COLUMNS, 0.5) != 0).sum()))


def test_the_pool_is_reached():
    """By a mask of this size, with more than one thread; the mask is the same."""
    calls, fill = [], mask._fill_by_threads
    threads = torch.get_num_threads()
    alone = rnndrop.dropout_mask(1, ROWS, COLUMNS, 0.5)
    torch.set_num_threads(2)
    try:
        mask._fill_by_threads = lambda keep, workers, *rest: calls.append(workers) or fill(keep, workers, *rest)
        shared = rnndrop.dropout_mask(1, ROWS, COLUMNS, 0.5)
    finally:
        mask._fill_by_threads = fill
        torch.set_num_threads(threads)
    assert calls == [2] and torch.equal(shared, alone)


def test_a_thread_that_outlives_the_main_one(expected):
    code = """
import threading, time
def late():
    threading.main_thread().join()
    print(checksum(), flush=True)
threading.Thread(target=late).start()
"""
    assert run(code) == [expected]


def test_a_thread_that_outlives_the_main_one_and_its_pool(expected):
    """The pool was made before."""
    code = """
import threading
print(checksum())
def late():
    threading.main_thread().join()
    print(checksum(), flush=True)
threading.Thread(target=late).start()
"""
    assert run(code) == [expected] * 2


def test_at_exit(expected):
    code = """
import atexit
atexit.register(lambda: print(checksum(), flush=True))
print(checksum())
"""
    assert run(code) == [expected] * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_fork(expected):
    """The threads of the pool are not there after a fork: a child that waited for them would hang."""
    code = """
import os, sys
assert mask._pool.cache_info().currsize == 0
print(checksum(), flush=True)
assert mask._pool.cache_info().currsize == 1
child = os.fork()
if child == 0:
    print(checksum(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    assert run(code, timeout=60) == [expected] * 2
