"""The forward of a rewritten model: which of its graphs a call runs, or whether the original runs in their place."""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from typing import Any

import torch
from torch import fx, nn

from graphaug.augment.rows import Counted, samples_of, tell
from graphaug.augment.site import Augmentation
from graphaug.capture.inputs.signature import Signature
from graphaug.capture.user_code import users_level
from graphaug.errors import AssumptionViolated, UnsupportedModel, listed
from graphaug.surgery.rewritten.aliases import speakable
from graphaug.surgery.rewritten.blocks import in_blocks
from graphaug.surgery.rewritten.parts import Parts, once_compiled
from graphaug.surgery.rewritten.retraced import loses_nodes, retraced
from graphaug.torch_private import function_from_source


def compiled(graph: fx.Graph, owner: type, aliases: dict[str, list[str]]) -> Any:
    """The function of a graph, with the model, an ``owner``, as its ``self``."""
    graph = speakable(graph, owner, aliases)
    with in_blocks(graph):
        code = graph.python_code(root_module="self")
    return function_from_source(code.src, code.globals)


def forward_of(signature: Signature, model: nn.Module) -> Any:
    """A function to be the forward of a rewritten model's class; others read off it what the original takes."""
    # a code object of its own: torch.compile counts recompilations by it, and many models may be compiled
    forward: Any = types.FunctionType(_forward.__code__.replace(), _forward.__globals__, "forward")
    # PEFT's forward hands on what it does not name
    get_base: Any = getattr(model, "get_base_model", None)
    inside = [] if get_base is None else [get_base().forward]
    seen = signature.python_signature(model.forward, *inside)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = seen.replace(parameters=[first, *seen.parameters.values()])
    return forward


def runs_graph_in_eval() -> bool:
    """Whether a call in eval mode is one of the graph: it compiles and exports where the original may not."""
    return torch.compiler.is_compiling()


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    parts = self._parts
    if self.training or isinstance(args, fx.Proxy) or not parts.runs_original:
        return _graph_forward(self, args, kwargs)
    acts = _acts(parts)
    if not acts and not runs_graph_in_eval():
        return parts.model.forward(*args, **kwargs)
    try:
        return _graph_forward(self, args, kwargs)
    except AssumptionViolated:  # whatever the model accepts: here it is the model
        if acts or parts.writes_into_inputs:
            raise
        return parts.model.forward(*args, **kwargs)


def _acts(parts: Any) -> bool:
    """Whether any augmentation is in training mode."""
    return any(a.training for a in parts.added.values() if isinstance(a, Augmentation))


def not_scriptable(aug: nn.Module) -> nn.Module:
    """What torch.jit.script asks of a module before it compiles it: which module to take instead.

    Raises:
        UnsupportedModel: always; TorchScript does not know what a rewritten forward is written in.
    """
    raise UnsupportedModel(
        "torch.jit.script cannot compile a rewritten model. For training use torch.compile; to deploy it, script the "
        "plain model, graphaug.strip(aug), or take torch.export.export of aug.eval()."
    )


def _graph_forward(aug: Any, args: Any, kwargs: Any) -> Any:
    parts = aug._parts
    if torch.jit.is_tracing() and _acts(parts):  # type: ignore[attr-defined, no-untyped-call]
        raise UnsupportedModel(
            "torch.jit.trace would keep the augmentation, in eval mode too: call aug.eval() before tracing, and for "
            "training use torch.compile."
        )
    if isinstance(args, fx.Proxy):  # a second tracing: its inputs are named by their places
        values = parts.signature.take(args, kwargs)
    else:
        falls_back = parts.runs_original and not aug.training and not _acts(parts)
        values = parts.signature.bind(args, kwargs, to_the_letter=falls_back)
        for fact in parts.facts.get(aug.training, ()):
            fact.check(parts.model)
        if aug.training and parts.frozen is not None:
            (_SAY_WHEN_COMPILED(parts.number) if torch.compiler.is_compiling() else _say_if_trained(parts))
        if torch.compiler.is_compiling() and (changed := _CHANGED[aug.training](parts.number)):
            raise AssumptionViolated(changed)
    told = [] if isinstance(args, fx.Proxy) else _tell(parts, values)
    gradients = torch.is_grad_enabled()
    try:
        return _run(aug, parts, args, values)
    except BaseException:  # in the middle of a region; those of autocast are blocks in the code
        if parts.sets_grad_mode:
            torch.set_grad_enabled(gradients)
        raise
    finally:
        for counted in told:
            counted.tell(None)


def _tell(parts: Any, values: dict[str, Any]) -> list[Counted]:
    """Tell what acts at the sites of the samples of a call."""
    samples = samples_of(values, parts.row_dims)
    return tell(parts.added.values(), values, None if samples is None else samples * parts.plan.asked.views)


def _run(aug: Any, parts: Any, args: Any, values: dict[str, Any]) -> Any:
    """Run the graph of the mode on the inputs by name; ``args`` as they were given."""
    if isinstance(args, fx.Proxy):
        graph = aug.graph if aug.training or parts.eval_graph is None else parts.eval_graph
        if loses_nodes(graph):
            return retraced(aug, graph, values, args.tracer)
    if aug.training:
        # a split asks for sizes, which a proxy has not
        whole = parts.split is None or isinstance(args, fx.Proxy)
        return aug._forward_training(**values) if whole else parts.split.run(aug, values)
    return aug._forward_eval(**values)


def _say_if_trained(parts: Parts) -> bool:
    """Warn, once of the same, of what is trained or follows the batches in what is to be frozen; whether any is."""
    trained = parts.trained_in_frozen()
    if trained and (said := f"trained: {trained}") not in parts.warned:
        parts.warned.add(said)
        frozen = parts.plan.freeze
        warnings.warn(
            f"{listed(trained)} {'are' if len(trained) > 1 else 'is'} trained in the region that was frozen by "
            f"freeze={None if frozen is None else frozen.side!r}: put there, or made trainable, since. Set "
            "requires_grad to False, or rewrite again, graphaug.rewrite(graphaug.strip(aug), ...), which freezes "
            "what is there then.",
            UserWarning,
            stacklevel=users_level(),
        )
    following = [] if parts.frozen is None else parts.frozen.following(parts.model)
    if following and (said := f"following: {following}") not in parts.warned:
        parts.warned.add(said)
        warnings.warn(
            f"the running statistics of {listed(following)} follow the batches in the frozen region: something else, "
            "as train() of the plain model, has set training mode there. Call train() of the rewritten model, which "
            "keeps them, or keep_frozen_statistics(False).",
            UserWarning,
            stacklevel=users_level(),
        )
    return bool(trained or following)


_SAY_WHEN_COMPILED = once_compiled(_say_if_trained)


def _changed(parts: Parts, training: bool) -> str:
    """What a graph relies on and is not as it was, as a message; an empty string if all is."""
    try:
        for fact in parts.facts.get(training, ()):
            fact.check(parts.model)
    except AssumptionViolated as violated:
        return str(violated)
    return ""


_CHANGED = {mode: once_compiled(functools.partial(_changed, training=mode)) for mode in (True, False)}
"""For training and eval mode. Of what the compiler does not understand this is the only look."""
