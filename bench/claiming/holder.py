"""The child process of the benchmark of claims: an agent that holds a task and does nothing, until it is killed."""

from __future__ import annotations

from solewriter import Task, connect
from solewriter.bench.kit.child import Order, told, told_to_go

PROGRAM = "solewriter.bench.claiming.holder"
CLAIM_S = 10.0  # for the one task that is ready


class Orders(Order, frozen=True):
    state: str


def main() -> None:
    with connect(told(Orders).state, name="victim") as client:
        if client.claim(Task, timeout_s=CLAIM_S) is not None:
            told_to_go()  # which nobody does: it ends with its parent


if __name__ == "__main__":
    main()
