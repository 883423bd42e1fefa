"""One pruning run: score, rank, cut, recover and judge, iteration by iteration."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ifap.axes.attention import adopt, is_whole, release
from ifap.axes.corrections import CannotFollowError
from ifap.axes.cut import cut_units
from ifap.axes.proof import Proof, prove
from ifap.axes.state import kept_notes, kept_state
from ifap.axes.units import Floats, Graph, Indices
from ifap.checks import Checks, Refusal, axes_that_cannot_follow, because, reasons_to_stay, require
from ifap.compensate import Compensation, biases_to_come, compensate, keep_made_weights
from ifap.costs import Cost, NetworkError, count_bytes, count_params, params_by_module
from ifap.errors import GraphError, TargetError
from ifap.forward import Inputs, copy_to_prune, device_of, evaluation_mode, private_copy, to_device, unwrapped
from ifap.latency import LatencyModel, latency_ratio, layer_widths, repeated
from ifap.layers import is_producer, modules_by_name
from ifap.methods import AnyMethod
from ifap.methods.base import Learnt, defaults_of, score
from ifap.options import Clock, OnPhase, OnStep, Options, Recover, Validate, fell_too_far, metric_of, name_of_metric
from ifap.plan import Plan, note_plan, noted_plan
from ifap.ranking import Budget, Ranking, by_speed, floors, unit_scores
from ifap.recovery.former import FormerParameters
from ifap.results import Pruned, Receipt, Target, layer_costs
from ifap.run_state import Store, described, follow, replay, restore_modes
from ifap.saving.plans import joined, pruned_plan
from ifap.saving.pretrained import STAYS, expressible
from ifap.saving.store import load
from ifap.schedule import rate, solve_rho_0
from ifap.view import output_tensors, trace

log = logging.getLogger(__name__)
_MAX_TOP_UPS = 5
_TIME_TOLERANCE = 0.01  # of a measured time, which is never twice the same


class Run:
    """One pruning run: the network as it is, its graph and what has happened so far."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        batches: Iterable[Inputs],
        options: Options,
        scorer: AnyMethod,
        labels: dict[str, Any],
        recover: Recover | None,
        validate: Validate | None,
        on_step: OnStep | None,
        ignore: Sequence[str | nn.Module],
        on_phase: OnPhase | None = None,
        refused: Mapping[int, str] | None = None,
    ) -> None:
        model = unwrapped(model)
        self._original, self._inputs, self._batches = model, example_inputs, batches
        self._options, self._scorer, self._labels = options, scorer, labels
        self._recover, self._validate, self._on_step = recover, validate, on_step
        self._on_phase = on_phase
        clock = Clock(on_phase)
        self._ignored = [_name_of(model, item) for item in ignore]
        self.model = copy_to_prune(model)
        self._refused = dict(refused or {})  # axes that turned out to be impossible to cut, and why
        with clock.phase("trace"):
            self._look()
        self._whole = replace(self._graph, structure=self._graph.structure.apart())
        if self._graph.num_units == 0:
            raise GraphError(f"nothing in this network can be pruned{because(self.model, self._graph)}")
        # Each iteration removes a unit at least, and planning far more iterations than there are units takes for ever.
        self._options = replace(options, steps=min(options.steps, self._graph.num_units))
        self._timer, self._timed_inputs = None, example_inputs
        if options.target is not None and options.target.kind == "latency":
            self._timed_inputs = repeated(example_inputs, options.target.batch)
            self._timer = LatencyModel(_copy_on(options.target.device, self.model), self._timed_inputs)
        self.after = self._present_cost()
        self.before = replace(self.after, params=count_params(model))
        self._layers_before = self._macs, params_by_module(model)
        self._original_sizes = self._graph.units_per_group()
        self._former = FormerParameters()
        self._former.add(model)
        self._teacher = private_copy(model).eval().requires_grad_(False) if recover is not None else None
        self._start_seconds = clock.seconds
        self.receipts: list[Receipt] = []
        self._wanted: Indices | None = None  # units of each group at the end, if a plan says so
        if options.target is not None:
            self._target = options.target
            self._goal = getattr(self.before, self._target.kind) * (1.0 - self._target.share)
        elif options.like is not None:
            end = follow(self._graph, options.like)
            self._wanted = end.units_per_group()
            self._goal = Budget(self._graph).predict(self._wanted.astype(float)).macs
            self._target = Target(macs=1.0 - self._goal / self.before.macs)

    def _look(self) -> None:
        """Trace the network, and find the axes that cannot be cut."""
        options = self._options
        self._graph: Graph = trace(
            self.model,
            self._inputs,
            self._ignored,
            spatial_only=options.spatial_only,
            units=options.units,
            outputs=options.outputs,
            keep_embeddings=options.keep_embeddings,
            uniform=options.uniform,
            samples=(to_device(batch, device_of(self.model)) for batch in self._batches),
        )
        if options.uniform:
            self._graph, fixed = expressible(self.model, self._graph)
            self._refused |= dict.fromkeys(fixed, STAYS)
        self._checks = Checks(self._inputs, options.outputs)

    # the loop

    def finish(self, store: Store | None) -> Pruned:
        """Run all iterations that are left and return the result."""
        if store is not None:
            store.claim(described(self._options, self._original, [str(name) for name in self._ignored]))
        if store is not None and store.exists():
            self._resume(store)
        else:
            self._begin()
            if store is not None:
                store.write(self.model, self.plan(), self.receipts)
        while not self._is_done():
            receipt = self._iterate(len(self.receipts))
            self.receipts.append(receipt)
            if receipt.accepted and self._on_step is not None:
                self._on_step(self.model, receipt)
            if store is not None:
                store.write(self.model, self.plan(), self.receipts)
        proof = self._prove() if self._options.prove else None
        release(self.model, [name for name, module in self.model.named_modules() if is_whole(module)])
        options, metric = self._options, None if self._validate is None else name_of_metric(self._validate)
        layers = layer_costs(*self._layers_before, self._macs, params_by_module(self.model))
        plan = joined(noted_plan(self._original), self.plan())
        note_plan(self.model, plan)
        return Pruned(
            self.model, plan, self.receipts, self.before, self.after, proof,
            layers, options.method, options.target, metric,
        )  # fmt: skip

    def plan(self) -> Plan:
        """Return the plan of the network as it is."""
        return pruned_plan(self.model, self._graph, self._inputs, self.before, self.after)

    def _prove(self) -> Proof:
        """Compare cutting with masking, from the unpruned network on."""
        Clock(self._on_phase, len(self.receipts) - 1).announce("prove")
        removed = self._whole.lost(self._graph.kept)
        proof = self._compare(removed)
        require(proof, self._whole, removed, self._compare)
        return proof

    def _compare(self, removed: Indices) -> Proof:
        return prove(
            copy_to_prune(self._original),
            self._whole,
            removed,
            [self._inputs, *self._whole.structure.forward.samples],
            lambda model, given: (x for each in given for x in output_tensors(model, each, self._options.outputs)),
        )

    def _is_done(self) -> bool:
        return self._is_reached() or not self.receipts[-1].accepted or len(self.receipts) > self._options.steps

    def _is_reached(self) -> bool:
        if self._wanted is not None:
            return bool((self._graph.units_per_group() == self._wanted).all())
        return bool(getattr(self.after, self._target.kind) <= self._goal)

    def _begin(self) -> None:
        metric = self._judge(Clock(self._on_phase))
        self.receipts = [
            Receipt(
                iteration=0,
                macs=self.before.macs,
                params=self.before.params,
                widths=self._widths(),
                pinned=self._pinned(),
                metric_before=metric,
                metric_after=metric,
                seconds=self._start_seconds,
            )
        ]
        if self._on_step is not None:
            self._on_step(self.model, self.receipts[0])

    def _iterate(self, step: int) -> Receipt:
        """Score, rank, cut, recover and judge once."""
        clock = Clock(self._on_phase, step)
        keeps_previous = self._options.max_drop is not None or self._options.teacher == "previous"
        previous = private_copy(self.model) if keeps_previous else None
        before_cut = replace(self._graph, structure=self._graph.structure.apart()), self.after
        if step > 1:  # before, the network is the original
            self._calibrate()
        receipt = self._shrink(step, clock)
        if step == self._options.steps:
            receipt = self._top_up(step, clock, receipt)
        before = self._judge(clock) if self._recover is not None else None
        self._train(step, clock, previous)
        metric = self._judge(clock)
        receipt = replace(
            receipt, metric_before=before if before is not None else metric, metric_after=metric, seconds=clock.seconds
        )
        if fell_too_far(self.receipts[0].metric_after, metric, self._options.max_drop):
            assert previous is not None
            assert self._validate is not None
            log.info("iteration %d is rolled back: %s fell to %s", step, name_of_metric(self._validate), metric)
            self.model, (self._graph, self.after) = previous, before_cut
            return replace(receipt, accepted=False)
        return receipt

    def _train(self, step: int, clock: Clock, previous: nn.Module | None) -> None:
        if self._recover is None:
            return
        teacher = self._teacher if self._options.teacher == "original" else previous
        assert teacher is not None
        former, notes, state = self._former.refused(self.model), kept_notes(self.model), kept_state(teacher)
        with former, notes, state, clock.phase("recover"):
            self._recover(self.model, teacher, step)
        self._former.add(self.model)

    def _judge(self, clock: Clock) -> float | None:
        if self._validate is None:
            return None
        with kept_notes(self.model), clock.phase("validate"):
            return metric_of(self._validate(self.model))

    # one cut

    def _shrink(self, step: int, clock: Clock) -> Receipt:
        learnt = Learnt({}, [])
        with evaluation_mode(self.model):  # in training even reading a weight may change what it is made from
            with clock.phase("score"):
                scores = self._score(step, learnt)
            for words in learnt.said:
                log.warning("units are scored %s", words)
            while True:
                ranking = self._rank(scores)
                try:
                    with clock.phase("prune"):
                        return self._cut(ranking, learnt, step)
                except Refusal as refusal:
                    log.warning("%s stays: %s", ", ".join(self._names(refusal.reasons)), refusal)
                    self._refused |= refusal.reasons

    def _score(self, step: int, learnt: Learnt) -> dict[str, Tensor] | Floats:
        options = self._options
        return score(
            self._scorer,
            self.model,
            self._batches,
            normalize=options.normalize,
            site=options.site,
            seed=options.seed * 1000 + step,
            graph=self._graph,
            macs=self._macs,
            compensate=options.compensate,
            outputs=options.outputs,
            **learnt._asdict(),
            **self._labels,
        )

    def _rank(self, scores: dict[str, Tensor] | Floats) -> Ranking:
        budget = Budget(self._graph, self._timer, None if self._timer is None else layer_widths(self.model))
        values = unit_scores(self._graph, scores, self._options.aggregate) if isinstance(scores, dict) else scores
        if self._timer is not None:
            values = values * by_speed(self._graph, budget)
        per_cost = defaults_of(self._scorer).per_cost
        return Ranking(self._graph, values, self._floors(), budget, self._round_to, per_cost=per_cost)

    @property
    def _round_to(self) -> int | None:
        if self._wanted is not None:
            return None
        return self._options.round_to or (self._timer.fast_width if self._timer is not None else None)

    def _floors(self) -> Indices:
        if self._wanted is not None:
            return self._wanted
        found = floors(self._graph, self._original_sizes, self._options.min_units, self._options.max_layer_ratio)
        for group in self._refused:
            found[group] = self._original_sizes[group]
        return found

    def _ask(self, ranking: Ranking, step: int) -> tuple[int, float]:
        """Return how many units this iteration asks for, and its rho."""
        options, every = self._options, ranking.num_candidates
        goal = self._goal_of(step) - self._made_biases()
        total = every if self._wanted is not None else ranking.smallest_count(self._target.kind, goal)
        if total is None:
            raise TargetError(self._unreachable(ranking, step))
        units = self._graph.num_units
        by_macs = options.pace == "macs"
        whole = 1.0 - ranking.cost(total).macs / self.after.macs if by_macs else total / units
        if options.shares is not None:
            return ranking.at_least_one(total), whole
        if step == options.steps:
            return total, whole
        rho = rate(step, options.steps, solve_rho_0(1.0 - whole, step, options.steps, options.alpha), options.alpha)
        most = (1.0 - rho) * self.after.macs
        count = (ranking.smallest_count("macs", most) or 0) if by_macs else round(rho * units)
        return ranking.at_least_one(min(total, max(1, count))), rho

    def _goal_of(self, step: int) -> float:
        """Return the cost that may be left after an iteration, if each has its own share, or else after the last."""
        shares = self._options.shares
        if shares is None or step >= len(shares):
            return self._goal
        return float(getattr(self.before, self._target.kind) * (1.0 - shares[step - 1]))

    def _made_biases(self) -> float:
        """Return the parameters that compensation has made or may yet make beyond what the ranking predicts."""
        options = self._options
        if not options.compensate or options.uniform or self._target.kind != "params":
            return 0
        predicted = self._graph.structure.forms.params(self._graph.units_per_group().astype(float))
        return self.after.params - predicted + biases_to_come(self.model, self._graph)

    def _cut(self, ranking: Ranking, learnt: Learnt, step: int) -> Receipt:
        count, rho = self._ask(ranking, step)
        lost, asked = ranking.removed_per_group(count), ranking.cost(count)
        is_exact = step == self._options.steps or self._options.shares is not None
        goal = self._goal_of(step) - self._made_biases()
        if is_exact and self._wanted is None and getattr(self.after, self._target.kind) > goal:
            lost = ranking.nearest(count, self._target.kind, goal)
        removed = ranking.units(lost)
        if len(removed) == 0:
            raise TargetError(f"iteration {step} makes no progress: {self._limits(ranking)}")
        done = Compensation()
        if self._options.compensate:
            biases = not self._options.uniform
            done = compensate(self.model, self._graph, removed, self._batches, learnt.moments, new_biases=biases)
        else:
            keep_made_weights(self.model, self._graph, removed, done)
        try:
            self._apply(removed, done)
        except Refusal:
            done.undo()
            raise
        cut_scores = ranking.scores[removed]
        return Receipt(
            iteration=step,
            macs=self.after.macs,
            params=self.after.params,
            units_asked=count,
            units_removed=len(removed),
            macs_asked=asked.macs,
            params_asked=asked.params,
            rho=rho,
            score_low=float(cut_scores.min()),
            score_high=float(cut_scores.max()),
            widths=self._widths(),
            at_floor=self._at_floor(),
            pinned=self._pinned(),
            compensated=done.said,
            scored=learnt.said,
        )

    def _apply(self, removed: Indices, done: Compensation) -> None:
        """Cut units, and see that the network still runs; if it does not, nothing is cut and `Refusal` says why."""
        try:
            smaller, undo = cut_units(self.model, self._graph, removed)
        except CannotFollowError as error:
            groups = axes_that_cannot_follow(self._graph, removed, error)
            raise Refusal(dict.fromkeys(groups, f"{error.text} (in '{error.module}')")) from None
        try:
            done.require_kept()
            self._checks.check(self.model, smaller)
        except NetworkError as error:
            undo()
            raise Refusal(reasons_to_stay(self.model, self._graph, removed, error, self._checks)) from error
        self._graph = smaller
        self.after = self._present_cost()

    @property
    def _macs(self) -> dict[str, int]:
        """Multiply-accumulates of each module of the network as it is."""
        return self._graph.structure.forms.macs_by_module(self._graph.units_per_group())

    def _present_cost(self) -> Cost:
        predicted = None if self._timer is None else self._timer.predict(layer_widths(self.model))
        return Cost(sum(self._macs.values()), count_params(self.model), predicted, count_bytes(self.model))

    def _calibrate(self, *, is_correction: bool = False) -> None:
        """Correct the predicted latency by its measured error, if latency is the target.

        A correction takes all that is too much off the prediction: some of it may not fall with the widths.
        """
        if self._timer is None or self.after.latency is None:
            return
        present, original = (_copy_on(self._target.device, network) for network in (self.model, self._original))
        measured = latency_ratio(present, original, self._timed_inputs)
        predicted = self.after.latency / self._timer.total
        wanted = (1.0 - self._target.share) * (1.0 + _TIME_TOLERANCE)
        goal = wanted * predicted / measured
        if is_correction:
            goal = min(goal, predicted - (measured - wanted))
        self._goal = self._timer.total * goal

    def _top_up(self, step: int, clock: Clock, receipt: Receipt) -> Receipt:
        """Cut a little more where products outside any layer made the prediction too low."""
        for _ in range(_MAX_TOP_UPS):
            self._calibrate(is_correction=True)
            if self._is_reached():
                return receipt
            receipt = receipt.followed_by(self._shrink(step, clock))
        target = self._target
        raise TargetError(f"target {target.kind}={target.share:g} was missed after {_MAX_TOP_UPS} corrections")

    # words

    def _widths(self) -> dict[str, int]:
        modules = modules_by_name(self.model)
        alone = {each.slot: each.key for each in self._graph.structure.producers}
        return {
            alone.get(index, slot.name): len(units)
            for index, (slot, units) in enumerate(zip(self._graph.slots, self._graph.unit_of, strict=True))
            if (units >= 0).any() and (index in alone or (slot.side == "out" and is_producer(modules[slot.name])))
        }

    def _names(self, groups: Iterable[int]) -> list[str]:
        return [self._graph.groups[group].name for group in sorted(groups)]

    def _pinned(self) -> dict[str, str]:
        """Return the layers that stay and why, with those that a cut showed to be impossible."""
        found = dict(self._graph.pinned)
        for group, reason in self._refused.items():
            its = self._graph.groups[group]
            found.update(dict.fromkeys([slot.name for slot in its.slots if slot.side == "out"] or [its.name], reason))
        return found

    def _at_floor(self) -> list[str]:
        limits = self._floors()
        sizes = self._graph.units_per_group()
        return [group.name for group in self._graph.groups if sizes[group.index] <= limits[group.index]]

    def _unreachable(self, ranking: Ranking, step: int) -> str:
        target, shares = self._target, self._options.shares
        asked_for = target.share if shares is None else shares[step - 1]
        least = getattr(ranking.cost(ranking.num_candidates), target.kind)
        reach = 1.0 - least / getattr(self.before, target.kind)
        most = f"at most {reach:.3f}"
        if self._timer is not None:
            asked = 1.0 - self._goal / self._timer.total
            most += f" of the predicted time can go, and {asked:.3f} would have to, as measured times fall less"
        return f"target {target.kind}={asked_for:g} cannot be reached: {most}; {self._limits(ranking)}"

    def _limits(self, ranking: Ranking) -> str:
        options, macs = self._options, self._macs
        unscored = f"{options.method} gives it no score; another method may"
        reasons = {**dict.fromkeys(ranking.without_score(), unscored), **self._pinned()}
        pinned = sorted(reasons, key=lambda name: (-macs.get(name, 0), name))[:3]
        names = ", ".join(f"'{name}' ({reasons[name]})" for name in pinned)
        floors_text = (
            f"every layer keeps min_units={options.min_units} and max_layer_ratio={options.max_layer_ratio:g} may go"
        )
        rounding = f", widths are rounded to {self._round_to}" if self._round_to else ""
        return f"{floors_text}{rounding}; these layers stay: {names or 'none'}"

    # going on after an interruption

    def _resume(self, store: Store) -> None:
        self.receipts, plan = store.read()
        # The plan of a state begins with the network as it was given, wherever that came from.
        self.model = load(store.folder, lambda: note_plan(private_copy(self._original), None))
        self.model.train(self._original.training)
        adopt(self.model)
        restore_modes(self._original, self.model)
        self._graph = replay(self._graph, plan)
        for name in plan.biases:
            self._graph.know_bias(name)
        self.after = self._present_cost()
        if not self._is_done():
            log.info("resumed after iteration %d", self.receipts[-1].iteration)


def _copy_on(device: str | None, model: nn.Module) -> nn.Module:
    """Return a copy of a network on a device, or the network itself for None."""
    return model if device is None else private_copy(model).to(device)


def _name_of(model: nn.Module, item: str | nn.Module) -> str | nn.Module:
    if isinstance(item, nn.Module):
        return next((name for name, module in model.named_modules() if module is item), item)
    return item
