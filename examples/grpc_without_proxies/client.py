"""Call a service by its name, with no proxy between: gRPC itself asks the control plane where the instances are.

GRPC_XDS_BOOTSTRAP=grpc.json python examples/grpc_without_proxies/client.py [--name greeter] [--calls 10]
"""

import argparse
import sys
from collections import Counter

import grpc

TIMEOUT_S = 20.0


def main(name: str, calls: int) -> None:
    """Greet again and again, and count who answered."""
    answers: Counter[str] = Counter()
    with grpc.insecure_channel(f"xds:///{name}") as channel:
        greet = channel.unary_unary("/example.Greeter/Greet")
        for _ in range(calls):
            try:
                # The first call waits for the control plane's answer; a service that is unknown fails after 15 s.
                answers[greet(b"Ada", timeout=TIMEOUT_S).decode()] += 1
            except grpc.RpcError as error:
                sys.exit(f"{name} cannot be called: {error.code().name}: {error.details()}")
    for answer, times in sorted(answers.items()):
        print(f"{times} times: {answer}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="greeter")
    parser.add_argument("--calls", type=int, default=10)
    arguments = parser.parse_args()
    main(arguments.name, arguments.calls)
