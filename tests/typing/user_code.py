"""A user's program as a type checker sees it. Checked by test_typing.py, never run.

Every `type: ignore` here is a promise as well: mypy reports the ones that it does not need.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, assert_type

from solewriter import (
    Change,
    Client,
    Create,
    Difference,
    Engine,
    Entity,
    Mutation,
    OfflineReader,
    Reader,
    Ref,
    Reply,
    Resync,
    Snapshot,
    SolewriterError,
    Task,
    TaskStatus,
    Transaction,
    Update,
    VersionConflict,
    Watch,
    aio,
    connect,
    dead_letters,
    errors,
    open_reader,
)
from solewriter.aio import AioClient
from solewriter.errors import NotFound


class Invoice(Entity, kind="invoice"):
    """A model of the user's own."""

    customer: str
    total_cents: int = 0


class Chore(Task, kind="chore"):
    """A task with more fields."""

    room: str = ""


def verbs(client: Client, task: Task, chore: Chore, invoice: Invoice) -> None:
    """Every verb gives back the type that it was given, of an entity or of a reference."""
    assert_type(client.create(Task(title="first")), Task)
    assert_type(client.create(invoice), Invoice)
    assert_type(client.put(chore), Chore)
    assert_type(client.update(task, title="other"), Task)
    assert_type(client.update(invoice, {"total_cents": 3}, expect=2, reason="a discount"), Invoice)
    assert_type(client.update(Chore.ref("c-1"), room="hall"), Chore)
    assert_type(Invoice.ref("i-1"), Ref[Invoice])
    assert_type(client.transition(task, TaskStatus.ASSIGNED, assigned_to="ann"), Task)
    assert_type(client.cancel(Task.ref("t-1"), reason="late"), Task)
    client.delete(invoice)


def targets(client: Client, invoice: Invoice) -> None:
    """A reference to a derived class is one to its base, as an entity of it is."""
    rename(client, Chore.ref("c-1"))
    mixed: list[Ref[Entity]] = [Chore.ref("c-1"), Invoice.ref("i-1")]
    for target in [Chore.ref("c-1"), Invoice.ref("i-1"), *mixed]:
        client.delete(target)


def rename(client: Client, target: Task | Ref[Task]) -> None:
    """Whoever takes a target of a kind."""
    assert_type(client.update(target, title="other"), Task)


def requests(client: Client, task: Task) -> None:
    """Requests answer with replies, in which a refusal is a value."""
    reply = client.submit(Create(task), deadline_s=0.5, wait_for_room=False)
    assert_type(client.update(task, title="by then, or never", deadline_s=1), Task)
    assert_type(reply, Reply)
    assert_type(reply.error, SolewriterError | None)
    assert_type(reply.entity, Any)
    assert_type(client.submit_many([Create(task)]), Iterator[Reply])
    wishes: list[Mutation] = [Create(task), Update(task, {"title": "other"})]
    assert_type(client.submit(*wishes), Reply)
    assert_type(client.submit_many(wishes), Iterator[Reply])
    with client.transaction(reason="tidying") as transaction:
        assert_type(transaction, Transaction)
        transaction.update(task, title="other")
    assert_type(transaction.result(task), Task)
    assert_type(transaction.revision, int)


def charge(transaction: Transaction, awaited: aio.AioTransaction, invoice: Invoice) -> Invoice:
    """What is handed a transaction can say so."""
    assert_type(awaited.put(invoice), Invoice)
    transaction.update(invoice, total_cents=invoice.total_cents + 1)
    return transaction.create(invoice)


def works(client: Client, stop: threading.Event, stopped: asyncio.Event) -> None:
    """A loop brings tasks of its kind; whatever has `is_set`, or a function, ends it."""
    assert_type(client.work(Chore, until=stop, room="hall"), Iterator[Chore])
    assert_type(client.work(Task, until=multiprocessing.Event()), Iterator[Task])
    assert_type(client.work(Task, until=lambda: stopped.is_set() or stop.is_set()), Iterator[Task])
    with client.attempt(Chore(title="sweep")) as chore:
        assert_type(chore, Chore)
    client.work(Task, until=30)  # type: ignore[arg-type]  # no number of seconds


def reads(snap: Snapshot, reader: Reader, client: Client) -> None:
    """A kind given as a class yields that class, given by name a mapping of plain values."""
    assert_type(snap.get(Task, "t-1"), Task | None)
    assert_type(snap[Invoice, "i-1"], Invoice)
    assert_type(snap.entities(Chore), Iterator[Chore])
    assert_type(snap.get("Task", "t-1"), dict[str, Any] | None)
    assert_type(snap["invoice", "i-1"], dict[str, Any])
    assert_type(snap.entities("chore"), Iterator[dict[str, Any]])
    assert_type(reader.get(Task, "t-1"), Task | None)
    assert_type(client.get(Task, "t-1"), Task | None)
    assert_type(client.get("Task", "t-1"), dict[str, Any] | None)
    assert_type(reader.wait_for(reader.revision, timeout_s=1.0), int)
    assert_type(reader.wait_until_count(Task, {"status": "created"}, lambda count: count == 0, 5), Snapshot)


def reads_of_either(snap: Snapshot, client: Client, kind: type[Task] | str) -> None:
    """A kind given as one or the other yields one or the other."""
    assert_type(snap.get(kind, "t-1"), Task | dict[str, Any] | None)
    assert_type(snap[kind, "t-1"], Task | dict[str, Any])
    assert_type(client.get(kind, "t-1"), Task | dict[str, Any] | None)


def differences(reader: Reader, offline: OfflineReader, kind: type[Task] | str | None) -> None:
    """What differs is of the kind that was asked for."""
    for difference in reader.diff(1, 2, Invoice):
        assert_type(difference.old, Invoice | None)
        _, _, _, new = difference
        assert_type(new, Invoice | None)
    assert_type(offline.diff(1, 2, Chore), list[Difference[Chore]])
    assert_type(reader.diff(1, 2, "chore")[0].new, dict[str, Any] | None)
    assert_type(reader.diff(1, 2), list[Difference[Any]])
    for either in reader.diff(1, 2, kind):
        print(either.id)


def watches(reader: Reader, told: bool) -> None:
    """A watch brings changes; only one that may fall behind, as it was asked to, brings anything else."""
    assert_type(reader.watch(Task, timeout_s=0), Watch[Change[Task]])
    assert_type([change.mutation for change in reader.watch(Task, since=3)], list[str])
    assert_type(next(reader.watch(Invoice)).new, Invoice | None)
    assert_type(next(reader.watch("invoice")).old, dict[str, Any] | None)
    assert_type(next(reader.watch()).new, Any | None)
    assert_type(next(reader.watch(Chore, resync=True)), Change[Chore] | Resync)
    assert_type(next(reader.watch(resync=True)), Change | Resync)
    assert_type(next(reader.watch(resync=told)), Change | Resync)
    assert_type(next(reader.watch(Task, id="t-1")).new, Task | None)
    assert_type(next(reader.watch([Task, Invoice], since=3)), Change)
    assert_type(next(reader.watch(("chore", Invoice), resync=told)), Change | Resync)
    names: list[str] = ["chore"]
    reader.watch(names)
    for any_of_them in (reader.watch(Task), reader.watch(resync=True)):
        follow(any_of_them)


def looking_back(reader: Reader, offline: OfflineReader) -> None:
    """What was is of the type that is asked for, too."""
    assert_type([change.new for change in reader.history(Invoice, "i-1")], list[Invoice | None])
    assert_type([change.old for change in offline.history("invoice", "i-1")], list[dict[str, Any] | None])


def reads_of_tasks(snap: Snapshot) -> None:
    """What is told of tasks is of their own kind."""
    assert_type(dead_letters(snap), list[Task])
    assert_type(dead_letters(snap, where={"project": "p"}), list[Task])
    assert_type(dead_letters(snap, Chore), list[Chore])
    assert_type(dead_letters(snap, "Chore"), list[dict[str, Any]])
    assert_type(dead_letters(snap, kind=Chore, where={"room": "hall"}), list[Chore])


def follow(watch: Watch) -> None:
    """Whoever takes any watch looks what it brings."""
    assert_type(next(watch), Change | Resync)


async def watches_awaited(reader: aio.AioReader) -> None:
    """The same of coroutines."""
    assert_type([change.mutation async for change in reader.watch(Task, since=3)], list[str])
    assert_type([one async for one in reader.watch(resync=True)], list[Change | Resync])
    assert_type([change.new async for change in reader.watch(Invoice)], list[Invoice | None])
    assert_type([change.old async for change in reader.history(Chore, "c-1")], list[Chore | None])


async def differences_awaited(reader: aio.AioReader) -> None:
    """And of theirs."""
    assert_type(await reader.diff(1, 2, Chore), list[Difference[Chore]])
    assert_type((await reader.diff(1, 2, "chore"))[0].new, dict[str, Any] | None)
    assert_type(await reader.diff(1, 2), list[Difference[Any]])


def refused(error: NotFound, client: AioClient) -> tuple[errors.NotFound, aio.AioClient]:
    """What is imported from the rooms that the front door shows is the same."""
    return error, client


async def verbs_awaited(client: aio.AioClient, task: Task, chore: Chore, invoice: Invoice) -> None:
    """The same types, awaited."""
    assert_type(await client.create(invoice), Invoice)
    assert_type(await client.put(chore), Chore)
    assert_type(await client.update(Chore.ref("c-1"), room="hall"), Chore)
    assert_type(await client.transition(task, TaskStatus.ASSIGNED, assigned_to="ann"), Task)
    assert_type(await client.cancel(Task.ref("t-1"), reason="late"), Task)
    await client.delete(invoice)
    assert_type(await client.submit(Create(task)), Reply)
    assert_type(client.submit_many([Create(task)]), AsyncGenerator[Reply, None])
    assert_type(client.submit_many(mutations(task), window=8), AsyncGenerator[Reply, None])
    assert_type(await client.apply(task, lambda task: {"title": task.title * 2}), Task)
    assert_type(await client.apply(Invoice.ref("i-1"), dearer), Invoice)
    async with client.transaction() as transaction:
        transaction.update(task, title="other")
        assert_type(transaction.create(invoice), Invoice)
    assert_type(transaction.result(task), Task)


async def mutations(task: Task) -> AsyncIterator[Create]:
    """An async source for a pipeline."""
    yield Create(task)


async def dearer(invoice: Invoice) -> Invoice:
    """An async update function."""
    return invoice.model_copy(update={"total_cents": invoice.total_cents + 1})


async def reads_awaited(reader: aio.AioReader, client: aio.AioClient) -> None:
    """A snapshot is the same object in both worlds."""
    with await reader.snapshot() as snap:
        assert_type(snap, Snapshot)
    assert_type(await reader.get(Task, "t-1"), Task | None)
    assert_type(await client.get(Invoice, "i-1"), Invoice | None)
    assert_type(await client.get("Task", "t-1"), dict[str, Any] | None)
    assert_type(await reader.wait_for(reader.revision, timeout_s=1.0), int)
    assert_type(client.reader, aio.AioReader)


async def program_awaited(state: str) -> None:
    """What opens can be awaited, or entered."""
    async with aio.connect(state, name="me") as client, aio.open_reader(state) as reader:
        assert_type(client, aio.AioClient)
        assert_type(reader, aio.AioReader)
    other = await aio.connect(state)
    assert_type(other, aio.AioClient)
    await other.close()
    assert_type(await aio.open_reader(state), aio.AioReader)


def program(state: str) -> None:
    """The front door: every context manager gives what it says."""
    with (
        Engine(state, models=[Invoice, Chore], durability="process") as engine,
        connect(engine.state, name="me") as client,
    ):
        assert_type(engine, Engine)
        assert_type(client, Client)
        with open_reader(engine.state) as reader, reader.snapshot() as snap:
            assert_type(reader, Reader)
            assert_type(snap, Snapshot)
        assert_type(open_reader(state, offline=True), OfflineReader)
        with open_reader(state, offline=not engine.restarts) as either:  # as an option of the program says
            assert_type(either, Reader | OfflineReader)
            assert_type(either.get(Task, "t-1"), Task | None)
        try:
            client.update(Task.ref("t-1"), title="other")
        except VersionConflict as conflict:
            known: errors.Refused = conflict
            print(known)
            task: Task = conflict.current  # the one that was asked for, as of a reply or a change
            assert_type(client.transition(task, TaskStatus.ASSIGNED, assigned_to="me"), Task)


async def mistakes_awaited(client: aio.AioClient) -> None:
    """What a type checker must refuse in coroutines."""
    await client.create("t-1")  # type: ignore[type-var]  # not an entity
    with aio.connect("state"):  # type: ignore[attr-defined]  # only `async with`
        pass


def mistakes(client: Client, task: Task, snap: Snapshot) -> None:
    """What a type checker must refuse."""
    Engine("state", durability="always")  # type: ignore[arg-type]  # no such durability
    Invoice(customer="ann", total=3)  # type: ignore[call-arg]  # no such field
    task.title = "other"  # type: ignore[misc]  # entities are frozen
    client.create("t-1")  # type: ignore[type-var]  # not an entity
    snap.get(int, "t-1")  # type: ignore[type-var]  # not a kind
    from solewriter import Tsk  # type: ignore[attr-defined]  # no such name

    print(Tsk)
