"""The search for a place: candidates from what home knows, and their offers. `jobs.router` decides."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from island.catalog.messages import ResolvedDataset
from island.errors import IslandError, NotFound
from island.jobs import router
from island.jobs.cost_model import CostModel
from island.jobs.dependencies import JobsDependencies
from island.jobs.exchange import JobExchange
from island.jobs.home.envelopes import envelope
from island.jobs.home.machine import PATIENCE_S, JobFacts
from island.jobs.messages import FULL, InputRef, Offer, OfferRequest
from island.jobs.router import Candidate, InputTransfer, JobRequirements, RoutingDecision
from island.kernel.ids import DatasetName, IslandId
from island.membership.service import IslandView

ASKED = 3
"""Maximum number of islands, besides home, that are asked for an offer at a time."""

AT_ONCE = 16
"""Maximum number of jobs that look for a place at the same time; more of them wait."""

FURTHER_S = 1.0
"""Seconds after the first offer of a place until the decision is made without the islands that have not answered."""

SLOW_S = 30.0
"""Seconds for which an island that did not answer is asked only if no other island offers a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPlaces:
    """The decision about a job with the offers that led to it."""

    decision: RoutingDecision
    reservations: dict[str, str]
    """Reservations by the key of the island."""
    asked: tuple[str, ...]
    """Names of the islands that were asked for an offer."""
    full: bool
    """Whether an island could run the job but has no free place."""
    absent: tuple[str, ...]
    """Names of the islands that are not linked now, but were a short time ago, or that gave no answer."""


class Placement:
    """Asks islands for offers."""

    def __init__(self, needs: JobsDependencies, exchange: JobExchange, costs: CostModel) -> None:
        self._costs = costs
        self._exchange, self._catalog, self._inputs = exchange, needs.catalog, needs.inputs
        self._membership, self._trust, self._peers = needs.membership, needs.trust, needs.peers
        self._clock, self._rng = needs.clock, needs.rng
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._slow: dict[str, float] = {}
        """Seconds on the monotonic clock until which islands count as slow, by their keys."""

    async def find(self, job: JobFacts, epoch: int, refused: Mapping[str, str]) -> FoundPlaces:
        """Ask the best candidates and home for offers, and the next best ones until a place is offered.

        `refused`: islands that refused the job for good, with their reasons. Raises `IslandError` if the job
        cannot be routed, because an input is unknown.
        """
        async with self._turns:
            inputs = [await self._input(ref) for ref in job.work.inputs]
            wanted = JobRequirements(home=self._trust.me, language=job.work.language, pin=job.pin)
            now = self._clock.monotonic()
            self._slow = {island: until for island, until in self._slow.items() if until > now}
            search = _Search(wanted=wanted, slow=frozenset(self._slow))
            considered: set[IslandId] = set()
            while not search.reservations and (near := self._shortlist(job, inputs, considered)):
                considered.update(near)
                search.consider([each for island in near if (each := await self._guess(job, inputs, island, refused))])
                while asked := search.next_to_ask():
                    search.add(await self._offers(job, epoch, [search.known[island] for island in asked]))
            return search.found(() if search.reservations else self._absent(wanted))

    def _shortlist(self, job: JobFacts, inputs: list[_Input], considered: set[IslandId]) -> list[IslandId]:
        """The next islands to be considered, after others that cannot run the job: at most ten."""
        if considered and job.pin:
            return []
        links = [(link.island, link.rtt) for link in self._peers.links() if link.island not in considered]
        holders = [holder for each in inputs for holder in each.holders if holder not in considered]
        near = router.shortlist(self._trust.me, job.pin, holders, links)
        return [island for island in near if island not in considered]

    def _absent(self, wanted: JobRequirements) -> list[IslandView]:
        """The islands that are not linked now, but were a short time ago."""
        me = self._trust.me
        return [
            view
            for view in self._membership.views()
            if view.island != me
            and wanted.pin in ("", view.island)
            and self._peers.link(view.island) is None
            and self._was_up_recently(view)
        ]

    def _was_up_recently(self, view: IslandView) -> bool:
        return view.state != "down" or self._clock.wall() - view.since < 2 * PATIENCE_S

    async def _guess(
        self, job: JobFacts, inputs: list[_Input], island: IslandId, refused: Mapping[str, str]
    ) -> Candidate | None:
        """An island as a candidate, with estimates from what home knows before it asks it. None if it is unknown."""
        try:
            view = self._membership.view(island)
        except NotFound:
            return None
        here = island == self._trust.me
        link = None if here else self._peers.link(island)
        up = here or link is not None
        language, size = job.work.language, sum(each.resolved.record.size for each in inputs)
        return Candidate(
            island=island,
            name=view.display,
            up=up,
            state="" if up else self._why_down(view.state, view.since),
            rtt=0.0 if here else (link.rtt if link else None),
            bandwidth=link.bandwidth if link else None,
            start=self._costs.start(island, language),
            compute=self._costs.compute(island, language, size),
            output=self._costs.output(language, size),
            parts=tuple([await self._part(each, island) for each in inputs]),
            refusal=refused.get(island, ""),
            draw=self._rng.random(),
        )

    async def _input(self, ref: InputRef) -> _Input:
        resolved = await self._catalog.resolve(DatasetName(ref.owner, ref.name, ref.snapshot))
        return _Input(ref, resolved, self._catalog.holders(resolved.owner, resolved.name, resolved.snapshot))

    def _why_down(self, state: str, since: float) -> str:
        if state == "up":
            return "there is no session with it at the moment"
        return f"it has been {state} for {router.format_seconds(max(0.0, self._clock.wall() - since))}"

    async def _part(self, each: _Input, island: IslandId) -> InputTransfer:
        name, size, files = str(each.ref), each.resolved.record.size, each.resolved.record.files
        if island == self._trust.me:
            missing = await self._inputs.missing(each.resolved)
        else:
            missing = 0 if island in each.holders else size
        if not missing:
            return InputTransfer(name, size, 0, files)
        source = next((holder for holder in each.holders if holder != island), each.resolved.owner)
        link = self._peers.link(source) if island == self._trust.me else None
        return InputTransfer(
            dataset=name,
            bytes=size,
            missing=missing,
            files=files,
            source=self._membership.display(source),
            rtt=link.rtt if link else None,
            bandwidth=link.bandwidth if link else None,
        )

    async def _offers(self, job: JobFacts, epoch: int, asked: list[Candidate]) -> list[tuple[Candidate, str]]:
        """The answers of islands; those that are much slower than the first offer count as silent."""

        async def answer(candidate: Candidate) -> tuple[Candidate, str] | Exception:
            try:
                return await self._ask_offer(job, epoch, candidate)
            except Exception as error:  # noqa: BLE001 - raised below as it is, not as a group of exceptions
                return error

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(each)) for each in asked]
            for each in asyncio.as_completed(tasks):
                if isinstance(found := await each, Exception) or found[1]:
                    break
            await asyncio.wait(tasks, timeout=FURTHER_S)
            for task in tasks:  # a place that is reserved nevertheless expires
                task.cancel()
        silent = f"it did not answer within {FURTHER_S:.0f} s after the first offer"
        answers = []
        for candidate, task in zip(asked, tasks, strict=True):
            if task.cancelled():
                answers.append((msgspec.structs.replace(candidate, up=False, state=silent), ""))
            elif isinstance(found := task.result(), Exception):
                raise found
            else:
                answers.append(found)
        for candidate, _ in answers:
            if candidate.up:
                self._slow.pop(candidate.island, None)
            else:
                self._slow[candidate.island] = self._clock.monotonic() + SLOW_S
        return answers

    async def _ask_offer(self, job: JobFacts, epoch: int, guess: Candidate) -> tuple[Candidate, str]:
        request = OfferRequest(
            envelope=envelope(self._trust, job, epoch, guess.island),
            kind=job.work.kind,
            language=job.work.language,
            inputs=job.work.inputs,
        )
        try:
            offer = await self._exchange.ask(IslandId(guess.island), "offer", request, Offer)
        except IslandError as error:  # it has decided nothing: a job does not fail because of one request
            return msgspec.structs.replace(guess, up=False, state=f"it did not answer: {error.message}"), ""
        if not offer.refusal and not offer.reservation:
            return msgspec.structs.replace(guess, refusal="it has sent an offer without a reservation"), ""
        if offer.refusal:
            return msgspec.structs.replace(guess, refusal=offer.refusal, full=offer.code == FULL), ""
        parts = tuple(
            InputTransfer(p.dataset, p.bytes, p.missing, p.files, p.source, p.rtt, p.bandwidth) for p in offer.parts
        )
        offered = msgspec.structs.replace(
            guess, offered=True, wait=max(0.0, offer.wait), languages=offer.languages, parts=parts
        )
        return offered, offer.reservation


@dataclass(frozen=True, slots=True)
class _Input:
    """One input of the job, and the islands that have it completely."""

    ref: InputRef
    resolved: ResolvedDataset
    holders: Sequence[IslandId]


@dataclass(slots=True, kw_only=True)
class _Search:
    """One search: what is known of the candidates so far, by their keys."""

    wanted: JobRequirements
    slow: frozenset[str] = frozenset()
    """Keys of the islands that did not answer lately: they are asked last."""
    known: dict[str, Candidate] = field(default_factory=dict)
    reservations: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    """Keys of the islands that were asked and gave no answer."""

    def consider(self, candidates: list[Candidate]) -> None:
        """Add islands that were not considered before."""
        self.known.update((each.island, each) for each in candidates)

    def next_to_ask(self) -> list[str]:
        """Keys of the best candidates that were not asked yet, and home; none when there is a reservation."""
        if self.reservations:
            return []
        possible = [each for each in self.known.values() if each.up and not (each.offered or each.refusal)]
        quick = [each for each in possible if each.island not in self.slow]
        unasked = router.ranking(router.decide(self.wanted, quick)) or router.ranking(
            router.decide(self.wanted, possible)
        )
        asked = unasked[:ASKED]
        if self.wanted.home in unasked and self.wanted.home not in asked:
            asked.append(self.wanted.home)
        self.asked += asked
        return asked

    def add(self, answers: list[tuple[Candidate, str]]) -> None:
        for candidate, reservation in answers:
            self.known[candidate.island] = candidate
            if not candidate.up:
                self.silent.append(candidate.island)
            if reservation:
                self.reservations[candidate.island] = reservation

    def found(self, absent: Sequence[IslandView]) -> FoundPlaces:
        """What the search has found."""
        for island in self.slow & self.known.keys() - set(self.asked):
            if self.known[island].up:
                why = "it was not asked, because it did not answer other requests lately"
                self.known[island] = msgspec.structs.replace(self.known[island], up=False, state=why)
        eligible = [each for each in self.known.values() if self.wanted.pin in ("", each.island)]
        listed = {view.island for view in absent}
        silent = set(self.silent) - listed
        return FoundPlaces(
            decision=self._short_decision(),
            reservations=self.reservations,
            asked=tuple(self.known[island].name for island in self.asked),
            full=any(each.up and each.full for each in eligible),
            absent=(*(view.display for view in absent), *(each.name for each in eligible if each.island in silent)),
        )

    def _decision(self) -> RoutingDecision:
        return router.decide(self.wanted, list(self.known.values()))

    def _short_decision(self) -> RoutingDecision:
        """The decision with its best candidates only, which is stored."""
        decision = self._decision()
        if len(decision.verdicts) <= router.RANKED:
            return decision
        kept = [self.known[verdict.island] for verdict in decision.verdicts[: router.RANKED]]
        return router.decide(self.wanted, kept)
