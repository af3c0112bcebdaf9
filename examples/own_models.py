"""Models of your own: nested parts, a rule, a lifecycle, columns; what they refuse; one more while the engine runs.

The engine is a process of its own, and these classes live in a script: they travel to it by value. Their stored name
is the class's name, so the same class in another script, or in a module, is the same kind tomorrow.

    python own_models.py [STATE]      STATE: a new folder, kept; a temporary one by default
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field, model_validator

from solewriter import (
    Engine,
    Entity,
    FrozenMap,
    InvalidMutation,
    InvalidTransition,
    Lifecycle,
    Part,
    broken,
    concerns,
    connect,
)


class Stage(StrEnum):
    DRAFT = "draft"
    RUNNING = "running"
    DONE = "done"
    DROPPED = "dropped"


class Step(Part):
    """A value inside an experiment: no id, no version of its own."""

    name: str
    minutes: Annotated[float, Field(gt=0)]


class Experiment(
    Entity,
    columns=("stage", "owner", "score"),  # what readers filter and sort by, without decoding anything
    lifecycle=Lifecycle(
        field="stage",
        initial="draft",
        steps={"draft": ("running", "dropped"), "running": ("done", "dropped"), "done": (), "dropped": ()},
        cancelled="dropped",  # where `cancel` leads
    ),
):
    owner: str
    stage: Stage = Stage.DRAFT
    steps: tuple[Step, ...] = ()
    settings: FrozenMap = FrozenMap()
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    updated_at: AwareDatetime | None = None  # filled in by the engine, as are created_at and created_by

    @model_validator(mode="after")
    @concerns("stage", "score")  # it only looks, and at these: changes of other fields need not run it
    def _what_is_done_has_a_score(self) -> Experiment:
        if self.stage is Stage.DONE and self.score is None:
            raise broken("score", "an experiment that is done has a score")
        return self


class Note(Entity):
    """Becomes known when the engine is running already."""

    about: str
    text: str = ""


def own_models(state: Path) -> bool:
    """Whether everything was stored, or refused, as the models say."""
    with Engine(state, models=[Experiment]) as engine, connect(engine.state, name="ann") as client:
        first = client.create(Experiment(id="exp-1", owner="ann", steps=(Step(name="warm up", minutes=5),)))
        first = client.update(first, settings={"lr": 0.001, "layers": [64, 64]})  # lists and dicts become immutable
        print(f"stored:  {first.id}, version {first.version}, {first.steps[0]}, {first.settings}")

        refused = [
            refusal(lambda: client.update(first, score=7)),
            refusal(lambda: client.update(first, steps=[{"name": "train", "minutes": 0}])),
            refusal(lambda: client.update(first, colour="red")),
            refusal(lambda: client.update(first, stage="done")),
            refusal(lambda: client.transition(first, "done", score=0.5)),
        ]
        running = client.transition(first, "running")
        refused.append(refusal(lambda: client.transition(running, "done")))
        done = client.transition(running, "done", score=0.9, reason="converged")
        print(f"stored:  {done.id}, version {done.version}, {done.stage}, score {done.score}")

        engine.register(Note)  # while it runs: nobody is disturbed
        note = client.create(Note(about=done.id, text="as good as we hoped"))
        with client.reader.snapshot() as snap:  # all kinds at one revision
            found = snap.scan(Experiment, {"owner": "ann", "stage": Stage.DONE}, order_by="-score")
            print(f"found:   {[experiment.id for experiment in found]}")
            print(f"by name: {snap['Note', note.id]}")  # a dict: who reads so needs no class
    return found == [done] and done.version == 4 and None not in refused


def refusal(ask: Callable[[], object]) -> str | None:
    """What is wrong with it, field by field; nothing was changed. None if it was taken."""
    try:
        ask()
    except InvalidMutation as error:
        said = str(error.fields)
    except InvalidTransition as error:
        said = str(error)
    else:
        return None
    print(f"refused: {said}")
    return said


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        right = own_models(Path(sys.argv[1] if sys.argv[1:] else folder))
    sys.exit(not right)
