"""The thread that carries out programs, in processes that fork."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import asyncio, os, sys
from shoal.frontend import driver

async def add(one, two):
    await asyncio.sleep(0)
    return one + two

assert driver.run(add(1, 2)) == 3
child = os.fork()
if not child:
    os._exit(driver.run(add(40, 2)))
_, status = os.waitpid(child, 0)
assert driver.run(add(3, 4)) == 7
print(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_process_gets_a_thread_of_its_own():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.strip() == "42"
