"""Twenty visitors at once on the embedded prior. Run it with -s to see the figures of docs/serve.md."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from gradio_client import Client, handle_file

from served import EXAMPLE, serving

VISITORS = 20

pytestmark = pytest.mark.slow


def test_twenty_visitors_at_once_are_all_answered_and_leave_no_memory_behind(tmp_path):
    """Rounds of visitors: what one of them leaves behind would add up."""
    with serving(tmp_path) as server:
        visitors = [Client(server.address, verbose=False, download_files=False) for _ in range(VISITORS)]

        def visit(seed):
            begun = time.monotonic()
            files, report = visitors[seed].predict(
                photo=handle_file(EXAMPLE), upscale="4", seed=seed, api_name="/restore"
            )
            return report["seed"], len(files), time.monotonic() - begun

        memory, waits = [], []
        with ThreadPoolExecutor(VISITORS) as pool:
            for _ in range(3):
                answers = list(pool.map(visit, range(VISITORS)))
                assert [(seed, count) for seed, count, _ in answers] == [(seed, 1) for seed in range(VISITORS)]
                waits = [seconds for *_, seconds in answers]
                memory.append(server.megabytes)
        print(  # noqa: T201
            f"waited {min(waits):.1f} to {max(waits):.1f} s; MB after each round: {[round(each) for each in memory]}"
        )
        assert memory[2] < memory[1] + 0.05 * memory[0]
