"""Pruning (Algorithm 1 of the paper): score, rank globally, remove, recover; once, or many small times."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ifap.arguments import (
    BATCHES,
    FUNCTION,
    INPUTS,
    LAYERS,
    MODULE,
    NAMES,
    NEW_FOLDER,
    NUMBER,
    SEED,
    SWITCH,
    TEXT,
    WHOLE,
    Kind,
    checked,
    either,
    every,
    function_of,
    instance,
    one_of,
    optional,
)
from ifap.axes.units import UNITS, UnitsOfProducts
from ifap.checks import UnprovenError
from ifap.data import refuse_test
from ifap.errors import GraphError, TargetError
from ifap.example_inputs import can_be_saved
from ifap.forward import Inputs
from ifap.iterations import Run, log
from ifap.methods import METHODS, AnyMethod
from ifap.methods.base import Loss, defaults_of
from ifap.options import OnPhase, OnStep, Options, Pace, Recover, Validate
from ifap.plan import Plan
from ifap.ranking import AGGREGATES, Aggregate
from ifap.results import Pruned, Target
from ifap.run_state import Store
from ifap.scores.flow import NORMALIZE, SITES, Normalize, Site

TARGET = instance(
    "an ifap.Target",
    Target,
    advice=lambda value: f"write ifap.Target(macs={value})" if isinstance(value, float) and 0 < value < 1 else None,
)
PLAN = instance("a plan", Plan, advice=lambda value: "give its attribute plan" if isinstance(value, Pruned) else None)
PACE = either(one_of("units", "macs"), every("shares of the target", float, int))
ARGUMENTS: dict[str, Kind] = {
    "model": MODULE, "example_inputs": INPUTS, "batches": BATCHES, "target": optional(TARGET), "like": optional(PLAN),
    "steps": optional(WHOLE), "recover": optional(function_of("model", "teacher", "step")),
    "validate": optional(function_of("model")), "max_drop": optional(NUMBER), "ignore": LAYERS,
    "round_to": optional(WHOLE), "method": either(TEXT, FUNCTION), "labelled": optional(BATCHES),
    "loss": optional(function_of("outputs", "inputs")), "seed": SEED, "alpha": NUMBER, "min_units": WHOLE,
    "max_layer_ratio": NUMBER, "normalize": one_of(*NORMALIZE), "site": one_of(*SITES),
    "aggregate": one_of(*AGGREGATES), "teacher": one_of("original", "previous"), "units": one_of(*UNITS),
    "spatial_only": SWITCH, "pace": PACE, "keep_embeddings": SWITCH, "compensate": optional(SWITCH),
    "outputs": optional(NAMES), "prove": SWITCH, "on_step": optional(function_of("model", "receipt")),
    "resume": optional(either(NEW_FOLDER, instance("a store", Store))),
    "on_phase": optional(function_of("phase", "iteration")), "uniform": SWITCH,
}  # fmt: skip


@checked(**ARGUMENTS)
def prune(
    model: nn.Module,
    example_inputs: Inputs,
    batches: Iterable[Inputs],
    *,
    target: Target | None = None,
    like: Plan | None = None,
    steps: int | None = None,
    recover: Recover | None = None,
    validate: Validate | None = None,
    max_drop: float | None = None,
    ignore: Iterable[str | nn.Module] = (),
    round_to: int | None = None,
    method: str | AnyMethod = "flow",
    labelled: Iterable[tuple[Inputs, Any]] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    alpha: float = 1.5,
    normalize: Normalize = "layer",
    site: Site = "output",
    aggregate: Aggregate = "mean",
    min_units: int = 2,
    max_layer_ratio: float = 0.95,
    spatial_only: bool = False,
    teacher: Literal["original", "previous"] = "original",
    pace: Pace = "units",
    keep_embeddings: bool = False,
    compensate: bool | None = None,
    units: UnitsOfProducts = "auto",
    outputs: Sequence[str] | None = None,
    prove: bool = True,
    on_step: OnStep | None = None,
    resume: str | Path | Store | None = None,
    on_phase: OnPhase | None = None,
    uniform: bool = False,
) -> Pruned:
    """Make a network smaller: score its units, remove those that matter least, compensate, and recover if asked to.

    Parameters
    ----------
    model : nn.Module
        Any network. It is not modified. Of a compiled, data-parallel or distributed module the network inside is
        pruned.
    example_inputs : Tensor, tuple, list or dict
        Inputs of one forward, for tracing and counting. Arguments that are no tensors are handed on as they are, and
        named tuples, namespaces and dataclasses among them are looked into.
    batches : iterable
        Calibration inputs without labels; iterated once or twice an iteration to score, and again to compensate where
        the score has not measured what that needs. A few hundred samples do, or 16,000 tokens; data like your own
        matter more than how many. Of layers that the example inputs do not reach, the first eight batches that reach
        them show what they read.
    target : Target
        Wanted reduction. It is met to within one unit from above.
    like : Plan, optional
        Instead of a target: the plan of a pruned network of the same architecture, whose widths this
        one ends with exactly; the method chooses within each width only. Limits such as `min_units`
        and `round_to` are then those of that plan. This is the control that tells the choice of
        units from the choice of widths.
    steps : int, optional
        Number of iterations T; by default one for ``flow`` and 30 for all others.
    recover : callable, optional
        ``recover(model, teacher, step)`` trains the network in place after each iteration; see
        `ifap.Distillation`. Without it nothing is trained.
    validate : callable, optional
        ``validate(model)`` returns a metric, higher is better, on validation data.
    max_drop : float, optional
        Largest allowed fall of `validate`, in its own unit. The smallest network within it is
        returned; the iteration that left it is rolled back and says so in its receipt.
    ignore : iterable of str or nn.Module
        Layers whose outputs must stay. The outputs of the network always stay.
    round_to : int, optional
        Keep widths that change a multiple of this (16 suits CPUs with AVX-512, 8 most other hardware).
    method : str or callable
        A name from the registry (``flow``, the paper's ``ifap``, ``magnitude``, ``random``, ...) or a function like
        `ifap.methods.base.Method`.
    labelled : iterable of (inputs, targets), optional
        For methods that need labels (``taylor``); iterated once an iteration. Never the test split.
    loss : callable, optional
        ``loss(outputs, targets)`` returns a scalar; for methods that need gradients. With ``flow`` and without
        `labelled` it is given the inputs in place of the targets.
    seed : int
        Seed of methods that draw numbers.
    alpha : float
        Exponent of the schedule rho_k = rho_0 (1 + k/T)^alpha; rho_0 is solved for the target.
    normalize, site
        See `ifap.flow_scores`.
    aggregate : {'mean', 'sum', 'max'}
        How scores of coupled layers are joined.
    min_units : int
        Channels that every layer keeps.
    max_layer_ratio : float
        Largest share of a layer's units that may go.
    spatial_only : bool
        The rule of the paper: nothing is removed for the sake of a 1x1 convolution or a linear
        layer. Only units that a convolution with a larger kernel produces can go; 1x1 convolutions,
        linear layers and norms follow where they are coupled to one.
    teacher : {'original', 'previous'}
        What `recover` is given: the network before all pruning, or before this iteration.
    pace : {'units', 'macs'} or sequence of float
        What rho_k is a share of: the units that are left (the paper's), or their multiply-accumulates.
        Where cheap units go first, counting units leaves a large step in cost for the last iteration. Or the share of
        the target's cost that is gone after each iteration, such as ``(0.2, 0.4, 0.5)`` for ``Target(macs=0.5)``.
    keep_embeddings : bool
        Keep the width of every embedding, and with it that of the residual stream it feeds: of a
        transformer for text only heads and feed-forward units go. Its embeddings then bound how
        far the number of parameters can fall.
    compensate : bool, optional
        Before each cut change the layers that read what goes, by ridge regression on `batches`, so that what stays
        stands in for it; see `ifap.compensate`. Layers without a bias may be given one. By default ``flow`` does and no
        other method; it is not part of the paper's.
    units : {'auto', 'heads', 'groups', 'inner'}
        What goes where an axis is a product, such as groups x channels of a group, or heads of keys x queries that
        share them. By default, and with ``'heads'`` or ``'groups'``, whole groups and heads; with ``'inner'`` the
        inner factor: the same channels of every group, the same queries of every head of keys.
    outputs : sequence of str, optional
        Which of the named outputs keep their shape, such as ``("logits",)``; by default every tensor that the network
        returns, also inside of containers and other objects. An object that `forward` takes as an argument of the same
        name, such as a cache, is none.
    prove : bool
        Compare the cut network with the masked one at the end, in double precision; see `Pruned`. It takes two
        forwards and a copy of the network in double precision, four where it does not apply to some units.
    on_step : callable, optional
        ``on_step(model, receipt)`` is called with the start and after each accepted iteration.
    resume : str or Path, optional
        Folder for the state after each iteration; a later call with the same arguments goes on
        from there and ends with the same network.
    on_phase : callable, optional
        ``on_phase(phase, iteration)`` is called when a phase begins: ``trace``, ``score``, ``prune``, ``recover``,
        ``validate`` and, at the end, ``prove``.
    uniform : bool
        Keep the same width in all blocks of a kind, such as the blocks of a transformer. Where the network holds a
        configuration that it was built from, only widths that a configuration can express are changed, and
        compensation makes no biases, so that `ifap.save_pretrained` can save the network without this package.

    Returns
    -------
    Pruned
        The smaller network with its plan, receipts and costs.

    Raises
    ------
    ConfigError
        If an argument has the wrong type or value, or `resume` holds the state of another run.
    TargetError
        If the target cannot be reached; the message says how far it goes and what limits it.
    PlanError
        If `like` is the plan of another network.
    GraphError
        If nothing in the network can be pruned, or if the proof fails after training (`recover` or `resume`); without
        training the axes that make it fail stay, and pruning begins again.
    ScoreError, SplitError
        See `ifap.flow_scores`.

    Examples
    --------
    >>> pruned = ifap.prune(net, images[:1], batches, target=ifap.Target(macs=0.65), steps=10)
    >>> ifap.save(pruned, "small/")
    """
    if torch.is_inference_mode_enabled():
        raise GraphError("prune cannot work inside torch.inference_mode, which forbids changes: use torch.no_grad")
    refuse_test(batches, "scoring")
    refuse_test(labelled, "scoring")
    refuse_test(validate, "stopping")
    scorer = METHODS.get(method) if isinstance(method, str) else method
    usual = defaults_of(scorer)
    shares = None if isinstance(pace, str) else tuple(pace)
    if steps is None:
        steps = usual.steps if shares is None else len(shares)
    options = Options(
        target=target,
        like=like,
        steps=steps,
        alpha=alpha,
        normalize=normalize,
        site=site,
        aggregate=aggregate,
        min_units=min_units,
        max_layer_ratio=max_layer_ratio,
        spatial_only=spatial_only,
        round_to=round_to,
        max_drop=max_drop,
        seed=seed,
        teacher=teacher,
        pace=pace if isinstance(pace, str) else "macs",
        shares=shares,
        keep_embeddings=keep_embeddings,
        compensate=usual.compensate if compensate is None else compensate,
        units=units,
        outputs=None if outputs is None else tuple(outputs),
        prove=prove,
        method=method if isinstance(method, str) else getattr(method, "__name__", "a function"),
        uniform=uniform,
    )
    _check(options, validate)
    refused: dict[int, str] = {}

    def run() -> Run:
        return Run(
            model,
            example_inputs,
            batches,
            options,
            scorer,
            {"labelled": labelled, "loss": loss},
            recover,
            validate,
            on_step,
            (ignore,) if isinstance(ignore, (str, nn.Module)) else tuple(ignore),
            on_phase,
            refused,
        )

    attempt = run()
    if not can_be_saved(example_inputs):
        log.warning("the example inputs are too many values for a saved plan: give one or a few samples")
    if recover is not None or resume is not None:  # what was trained is not thrown away
        return attempt.finish(Store(Path(resume)) if isinstance(resume, (str, Path)) else resume)
    while True:
        try:
            return attempt.finish(None)
        except UnprovenError as error:
            if error.groups <= refused.keys():  # a plan given as `like` says what goes
                raise
            log.warning("%s", error)
            refused |= dict.fromkeys(error.groups, "the network without it does not compute what the masked one does")
            attempt = run()


def _check(options: Options, validate: Validate | None) -> None:
    if (options.target is None) == (options.like is None):
        raise TargetError("give exactly one of target and like")
    if options.steps < 1:
        raise TargetError(f"steps must be at least 1, not {options.steps}")
    if options.max_drop is not None and validate is None:
        raise TargetError("max_drop needs validate: without a metric no fall can be seen")
    if options.max_drop is not None and options.max_drop < 0:
        raise TargetError(f"max_drop must not be negative, got {options.max_drop}")
    if options.shares is not None:
        _check_shares(options.shares, options)
    if not 0 < options.max_layer_ratio <= 1:
        raise TargetError(f"max_layer_ratio must lie in (0, 1], got {options.max_layer_ratio}")
    if options.min_units < 1 or (options.round_to is not None and options.round_to < 1):
        raise TargetError("min_units and round_to must be at least 1")


def _check_shares(shares: tuple[float, ...], options: Options) -> None:
    if options.target is None or options.target.kind == "latency":
        raise TargetError("pace: shares for each iteration need a target in macs or params")
    if any(not before < share for before, share in itertools.pairwise((0.0, *shares))):
        raise TargetError(f"pace: the shares must rise from above 0, got {', '.join(f'{share:g}' for share in shares)}")
    if len(shares) != options.steps or shares[-1] != options.target.share:
        raise TargetError(
            f"pace: give {options.steps} shares that end with the target {options.target.share:g}, "
            f"got {len(shares)} that end with {shares[-1] if shares else 0:g}"
        )
