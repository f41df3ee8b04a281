"""One of the processes whose verdicts a second are counted. Started by `bench.verifiers.measure`."""

import asyncio
import json
import sys
import time

from bench.verifiers.measure import WARM_UP_S, ask, prepare, read_case, repeat
from verifiers import registry


def main(asked: str) -> None:
    """Warm up, say so, wait for the word, and print verdicts a second."""
    order = json.loads(asked)
    case = read_case(order["case"])
    verifier, _ = prepare(case, order["service"])

    async def run() -> float:
        await repeat(lambda: ask(verifier, case), WARM_UP_S, case.at_once)
        print("ready", flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        times = await repeat(lambda: ask(verifier, case), order["seconds"], case.at_once)
        return len(times) / (time.perf_counter() - started)

    print(asyncio.run(run()))
    registry.close()


if __name__ == "__main__":
    main(sys.argv[1])
