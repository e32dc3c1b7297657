"""Call services over `xds:///` again and again, in a process of its own: gRPC reads its bootstrap once, at start.

python grpc_caller.py PAUSE_S TARGET…: one channel a target, each called in turn by a thread of its own until stdin
ends; prints a JSON line for each call.
"""

import json
import sys
import threading

import grpc

PATIENCE_S = 5.0


def call(target: str, pause_s: float, ended: threading.Event) -> None:
    """Call one target until the end, and say what comes back."""
    with grpc.insecure_channel(target) as channel:
        who = channel.unary_unary("/test.Who/Are")
        calls = 0
        while not ended.wait(pause_s):
            calls += 1
            # One header is the same for all calls, the other never: a ring is entered at one place, or everywhere.
            headers = (("x-same", "one"), ("x-user", f"user-{calls}"))
            try:
                said = {"name": who(b"", timeout=PATIENCE_S, metadata=headers).decode()}
            except grpc.RpcError as error:
                said = {"error": f"{target}: {error.code().name}: {error.details()}"}
            print(json.dumps(said), flush=True)


def main(pause_s: float, targets: list[str]) -> None:
    """Call all targets side by side."""
    ended = threading.Event()
    threads = [threading.Thread(target=call, args=(target, pause_s, ended)) for target in targets]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
