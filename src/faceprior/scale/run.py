"""The driver of a run on a Ray cluster: every photograph is done, or said why not, whatever machines are lost.

A photograph goes through three tasks: it is prepared on a CPU, its faces are restored with those of others by an
actor that holds the networks, and it is composed and written on a CPU. Between them it is a value in Ray's store. The
driver holds only names: it tries again what was lost, notes each try in the journal before it starts, and lets no
more be under way than the cluster can work on.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, NodeDiedError, ObjectLostError, RayError, RayTaskError

from faceprior.errors import FacePriorError, OptionError
from faceprior.folders.inputs import Folder, Lister, expand
from faceprior.folders.manifest import Record, check_settings
from faceprior.scale.journal import Journal
from faceprior.scale.listing import Listing, Photograph, Rows, list_rows, read_listing, write_listing
from faceprior.scale.work import About, Job, Restorer, Stage, compose_photograph, prepare_photograph
from faceprior.storage import Place, Url, as_url

FOLDER_NAME = "restore.parts"
"""Of the listing, the journal and the records, in the output folder."""

Ref = Any  # ray.ObjectRef
Actor = Any  # ray.actor.ActorHandle of a Restorer

_LOOK = 0.05  # seconds that finished tasks are waited for together
_FLUSHED_EVERY = 2.0  # seconds until records are in the journal at the latest
_IDLE = 60.0  # seconds after which a restorer without work gives its machine back
_BATCHES_AHEAD = 2  # that a restorer has: one under way, one that travels
_LOSSES = 10  # of machines that a photograph is not blamed for
_STORE_SHARE = 0.3  # of the memory of Ray's store that photographs under way may take


def restore_on_ray(
    arguments: Iterable[Place],
    job: Job,
    *,
    resume: bool = False,
    on_skipped: Callable[[str], object] = lambda _text: None,
    on_listed: Callable[[int, int], object] = lambda _all, _left: None,
) -> Iterator[Record]:
    """Restore photographs on the cluster that `ray.init` has joined.

    Args:
        arguments: files, folders and patterns as of `find_inputs`; not looked at if a run is resumed.
        job: how photographs are restored, into which folder, the same for all machines, and how the cluster is used.
        resume: go on with the run in the output folder, if there is one.
        on_skipped: told in a sentence what was left out of a folder or pattern.
        on_listed: called with the number of photographs and of the parts that are left, before the first is tried.

    Yields:
        A record for each photograph that is finished, in any order; those of earlier runs are left out. In the folder
        they stand in the order of the listing.

    Raises:
        OutputError: the state of the run cannot be written or read.
        OptionError: the folder holds a run and `resume` is False, or one with other settings; or another command
            works on it.
        FacePriorError: the networks cannot be loaded.
    """
    output = job.output
    folder = as_url(output) / FOLDER_NAME
    listing = read_listing(folder / "listing")
    if listing is not None and not resume:
        raise OptionError(f"{output}: holds a run; add --resume to go on with it, or choose another --output")
    restorers = _Restorers(job)
    try:
        about = restorers.first()
        if listing is not None:
            check_settings(folder, listing.settings, about.settings)
        else:
            suffixes = [""] if job.options.only_faces else job.options.suffixes
            lister = ray_lister(output, suffixes)
            inputs = (own for where in arguments for own in expand(where, output, on_skipped, lister))
            listing = write_listing(inputs, folder / "listing", output, suffixes, job.scale.parts, about.settings)
        journal = Journal(folder, listing.settings)
        journal.tidy()
        left = [part for part in range(listing.parts) if part not in journal.done]
        on_listed(listing.photographs, len(left))
        yield from _Driver(job, about, restorers, journal, listing).run(left)
    finally:
        restorers.close()


def ray_lister(output: Place, suffixes: Sequence[str]) -> Lister[Rows]:
    """Return what lists the folders of a storage on the cluster, many at once."""
    task = ray.remote(num_cpus=1)(list_rows)

    def begin(url: Url, belows: Sequence[str]) -> Iterator[Folder[Rows]]:
        return folders(task.remote(url, belows, output, suffixes))

    def folders(ref: Ref) -> Iterator[Folder[Rows]]:
        try:
            yield from ray.get(ref)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise OSError(_why(error)) from error

    return begin


@dataclass(eq=False)
class _Item:
    """A photograph on its way."""

    part: int
    photograph: Photograph
    tries: int = 0
    losses: int = 0  # of machines, that were no tries
    alone: bool = False  # nothing else is under way at its last try, so that it cannot be blamed for another
    stage: Stage = field(default_factory=Stage)
    conditions: Ref | None = None
    prepared: Ref | None = None


@dataclass(eq=False)
class _Part:
    """A part that is open."""

    photographs: list[Photograph]
    records: dict[str, Record]

    @property
    def is_done(self) -> bool:
        return len(self.records) == len(self.photographs)


class _Driver:
    def __init__(self, job: Job, about: About, restorers: _Restorers, journal: Journal, listing: Listing) -> None:
        self._about, self._most_tries = about, job.scale.tries
        self._restorers, self._journal, self._listing = restorers, journal, listing
        self._shared = [ray.put(own) for own in (job, about.card, about.made)]
        # a task is never repeated by Ray itself, which would not note it
        task = ray.remote(num_cpus=1, max_retries=0)
        self._prepare = task(prepare_photograph).options(num_returns=3)
        self._compose = task(compose_photograph)
        self._parts = dict[int, _Part]()
        self._todo: Iterator[_Item] = iter(())
        self._next: _Item | None = None
        self._again = list[tuple[float, int, _Item]]()  # when, a number, what
        self._order = count()
        self._under_way = set[_Item]()
        self._pending = dict[Ref, Callable[[Any], None]]()  # what is done with a task's result
        self._blamed = dict[Ref, Sequence[_Item]]()  # the photographs that it was about
        self._waiting = deque[_Item]()  # for the networks
        self._records = deque[Record]()
        self._flush_at = time.monotonic() + _FLUSHED_EVERY

    def run(self, parts: Sequence[int]) -> Iterator[Record]:
        """Restore parts; yields records as photographs are finished."""
        self._todo = self._items(parts)
        self._next = next(self._todo, None)
        try:
            while self._admit() or self._under_way or self._again:
                self._dispatch()
                self._receive()
                self._complete()
                while self._records:
                    yield self._records.popleft()
            self._complete()
            yield from self._records
        finally:  # a run that is stopped keeps what it has finished, and blames nobody
            for item in self._under_way:
                self._journal.untried(item.part, [item.photograph.input])
            self._journal.flush()

    # --- what is begun

    def _items(self, parts: Sequence[int]) -> Iterator[_Item]:
        """Open the parts one after the other."""
        for number in parts:
            photographs = self._listing.read(number)
            records, tries = self._journal.open(number, photographs)
            self._parts[number] = _Part(photographs, records)
            for photograph in photographs:
                if photograph.input in records:
                    continue
                before = tries[photograph.input]
                item = _Item(number, photograph, before, alone=0 < before == self._most_tries - 1)
                if before >= self._most_tries:
                    self._give_up(item, "its machine was lost each time")
                else:
                    yield item

    def _admit(self) -> bool:
        """Begin with photographs, as many as the cluster can work on; the journal has them before they start.

        Returns:
            Whether there are any that were not begun.
        """
        chosen = list[_Item]()
        under_way, now = len(self._under_way), time.monotonic()
        room = self._room() - under_way
        if room < self._room() // 4 and under_way:  # few pieces of the journal, rather than one for each photograph
            return True
        if any(item.alone for item in self._under_way):
            return True
        while len(chosen) < room:
            due = bool(self._again) and self._again[0][0] <= now
            item = self._again[0][2] if due else self._next
            if item is None or (item.alone and (chosen or under_way)):
                break
            if due:
                heapq.heappop(self._again)
            else:
                self._next = next(self._todo, None)
            chosen.append(item)
            if item.alone:
                break
        for item in chosen:
            item.tries += 1
            self._journal.tried(item.part, [item.photograph.input])
        if chosen:
            self._flush()
        for item in chosen:
            self._under_way.add(item)
            job, card, _ = self._shared
            stage, item.conditions, item.prepared = self._prepare.remote(job, card, item.photograph)
            self._expect(stage, partial(self._prepared, item), [item])
        return self._next is not None

    def _room(self) -> int:
        """How many photographs may be under way."""
        resources = ray.cluster_resources()
        room = 4 * int(resources.get("CPU", 1)) + 4 * self._about.faces_at_once * self._restorers.count
        held = sum(item.stage.bytes for item in self._under_way)
        return room if held < _STORE_SHARE * resources.get("object_store_memory", 1e9) else 0

    # --- from task to task

    def _expect(self, ref: Ref, then: Callable[[Any], None], items: Sequence[_Item]) -> None:
        self._pending[ref] = then
        self._blamed[ref] = items

    def _receive(self) -> None:
        """Take the results of tasks that have ended."""
        waiting = [*self._pending, *self._restorers.starting]
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=_LOOK) if waiting else ([], [])
        if not waiting:
            time.sleep(_LOOK)
        for ref in ready:
            if ref in self._restorers.starting:
                self._restorers.started(ref)
                continue
            then, items = self._pending.pop(ref), self._blamed.pop(ref)
            try:
                result = ray.get(ref)
            except RayError as error:
                self._restorers.returned(ref, lost=not isinstance(error, RayTaskError))
                for item in items:
                    if self._is_of_the_machine(error) and item.losses < _LOSSES:
                        item.losses += 1
                        item.tries -= 1
                        self._journal.untried(item.part, [item.photograph.input])
                    self._retry(item, _why(error))
            else:
                self._restorers.returned(ref)
                then(result)

    def _is_of_the_machine(self, error: Exception) -> bool:
        """Whether a task was lost with the machine that it ran on or that held what it needs."""
        lost = (NodeDiedError, ActorUnavailableError, ObjectLostError)
        return isinstance(error, lost) or "its node has died" in str(error)

    def _prepared(self, item: _Item, stage: Stage) -> None:
        if stage.record is not None:
            self._ended(item, stage.record)
            return
        item.stage = stage
        if stage.faces:
            self._waiting.append(item)
        else:
            self._compose_of(item, [])

    def _dispatch(self) -> None:
        """Hand full batches to the restorers; what is left when nothing more comes is a batch too."""
        at_once = self._about.faces_at_once
        faces = sum(item.stage.faces for item in self._waiting)
        self._restorers.scale(faces / at_once)
        coming = any(item.stage.faces == 0 for item in self._under_way)
        while self._waiting and (faces >= at_once or not coming):
            restorer = self._restorers.free()
            if restorer is None:
                return
            batch = [self._waiting.popleft()]
            # a face that has ended a process is not restored with others
            while self._waiting and batch[0].tries == 1 and self._waiting[0].tries == 1:
                if sum(item.stage.faces for item in batch) >= at_once:
                    break
                batch.append(self._waiting.popleft())
            faces -= sum(item.stage.faces for item in batch)
            call = restorer.restore.options(num_returns=1 + len(batch))
            done, *refs = call.remote(*(item.conditions for item in batch))
            self._restorers.sent(restorer, done)
            self._expect(done, partial(self._restored, batch, refs), batch)

    def _restored(self, batch: Sequence[_Item], refs: Sequence[Ref], _done: None) -> None:
        for item, ref in zip(batch, refs, strict=True):
            self._compose_of(item, ref)

    def _compose_of(self, item: _Item, restored: Any) -> None:
        job, _, made = self._shared
        ref = self._compose.remote(job, made, item.photograph, item.stage, item.prepared, restored)
        self._expect(ref, partial(self._ended, item), [item])

    # --- what is finished

    def _ended(self, item: _Item, record: Record) -> None:
        if record.get("again"):
            self._retry(item, record["error"], record)
            return
        self._finish(item, record)

    def _retry(self, item: _Item, why: str, record: Record | None = None) -> None:
        """Try a photograph again, later; after the last try that is what became of it."""
        self._under_way.discard(item)
        item.conditions = item.prepared = None
        item.stage = Stage()
        if item.tries < self._most_tries:
            pause = min(30.0, 0.5 * 2**item.tries)
            heapq.heappush(self._again, (time.monotonic() + pause, next(self._order), item))
        elif record is not None:
            self._finish(item, record)
        else:
            self._give_up(item, why)

    def _give_up(self, item: _Item, why: str) -> None:
        name = item.photograph.input
        error = f"{name}: given up after {item.tries} tries ({why}); look at the file"
        self._finish(item, {"input": name, "status": "failed", "error": error, "tries": item.tries})

    def _finish(self, item: _Item, record: Record) -> None:
        self._under_way.discard(item)
        item.conditions = item.prepared = None
        self._parts[item.part].records[record["input"]] = record
        self._journal.finished(item.part, record)
        self._records.append(record)

    def _complete(self) -> None:
        """Write the records of the parts that are done."""
        for number in [number for number, part in self._parts.items() if part.is_done]:
            part = self._parts.pop(number)
            self._journal.complete(number, [part.records[own.input] for own in part.photographs])
        if time.monotonic() >= self._flush_at:
            self._flush()

    def _flush(self) -> None:
        self._journal.flush()
        self._flush_at = time.monotonic() + _FLUSHED_EVERY


def _why(error: Exception) -> str:
    cause = getattr(error, "cause", None)  # of an error that was raised in a task
    text = str(cause if cause is not None else error).strip().partition("\n")[0]
    return f"{type(cause or error).__name__}: {text}"


class _Restorers:
    """The actors that hold the networks: as many as there is work for, and room in the cluster."""

    def __init__(self, job: Job) -> None:
        total = ray.cluster_resources()
        gpus = job.scale.gpus if job.scale.gpus is not None else min(1.0, total.get("GPU", 0.0))
        self._share, self._gpus = (gpus, True) if gpus else (1.0, False)
        cpus = 0 if gpus or total.get("CPU", 1) < 2 else 1
        self._make = ray.remote(num_gpus=gpus, num_cpus=cpus, max_restarts=0, max_task_retries=0)(Restorer)
        self._job = ray.put(job)
        self.starting = dict[Ref, Actor]()  # until they say what they are
        self._at_work = dict[Actor, list[Ref]]()
        self._used = dict[Actor, float]()
        self._about: About | None = None

    @property
    def count(self) -> int:
        """That are ready."""
        return max(1, len(self._at_work))

    def first(self) -> About:
        """Start one, wait for it, and return what it says of the networks; raises FacePriorError."""
        ref = self._start()
        try:
            self._about = ray.get(ref)
        except RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, FacePriorError):
                raise cause from error
            raise FacePriorError(f"the networks cannot be loaded on the cluster ({_why(error)})") from error
        self.started(ref)
        return self._about

    def scale(self, batches: float) -> None:
        """Start restorers where work waits and there is room, and let idle ones go."""
        total = ray.cluster_resources()
        # of GPUs one more is asked for, by which an autoscaler knows
        most = int(total.get("GPU", 0) / self._share) + 1 if self._gpus else max(1, int(total.get("CPU", 1)) // 2)
        alive = len(self._at_work) + len(self.starting)
        if alive == 0 or (batches > _BATCHES_AHEAD and not self.starting and alive < most):
            self._start()
        for actor, work in list(self._at_work.items()):
            if not work and len(self._at_work) > 1 and time.monotonic() - self._used[actor] > _IDLE:
                self._drop(actor)

    def started(self, ref: Ref) -> None:
        """Take up one that has said what it is, or has failed."""
        actor = self.starting.pop(ref)
        try:
            about = ray.get(ref)
        except RayError:
            return  # its machine was lost; where work waits another is started
        if self._about is not None and about.settings != self._about.settings:
            ray.kill(actor)  # of another number format, say: results would depend on who made them
            return
        self._at_work[actor], self._used[actor] = [], time.monotonic()

    def free(self) -> Actor | None:
        """Return the one with the least work, if that is little enough."""
        actor = min(self._at_work, key=lambda own: len(self._at_work[own]), default=None)
        return actor if actor is not None and len(self._at_work[actor]) < _BATCHES_AHEAD else None

    def sent(self, actor: Actor, ref: Ref) -> None:
        """Note that one has a batch."""
        self._at_work[actor].append(ref)

    def returned(self, ref: Ref, *, lost: bool = False) -> None:
        """Note that a batch is done, or lost with its actor."""
        for actor, work in list(self._at_work.items()):
            if ref in work:
                work.remove(ref)
                self._used[actor] = time.monotonic()
                if lost:
                    self._drop(actor)

    def close(self) -> None:
        """Let all go."""
        for actor in [*self._at_work, *self.starting.values()]:
            ray.kill(actor)

    def _start(self) -> Ref:
        actor = self._make.remote(self._job)
        ref = actor.about.remote()
        self.starting[ref] = actor
        return ref

    def _drop(self, actor: Actor) -> None:
        self._at_work.pop(actor, None)
        self._used.pop(actor, None)
        ray.kill(actor)
