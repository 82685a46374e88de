"""Stand-ins for closed modules: they return fresh tensors of the shapes that the module would, and compute nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.inputs.signature import map_tensors
from graphaug.capture.recording.checks import unchecked
from graphaug.capture.recording.values.inside import attributes_of
from graphaug.capture.state import unchanged, undrawn
from graphaug.capture.switches import switches
from graphaug.errors import an
from graphaug.proof.equivalence import as_identities, with_forwards
from graphaug.proof.shadow.origins import Origins
from graphaug.proof.shadow.recorder import Recorder
from graphaug.torch_private import FakeTensorMode, UninitializedTensorMixin, quiet_fakes

_DRAWN = 8191
"""So many numbers of a stand-in's result are drawn. A prime: rows, channels and tokens do not repeat as they do."""


class CannotStandIn(Exception):
    """What a closed module returns cannot be told without running it in earnest."""


@dataclass(frozen=True)
class _Like:
    """A tensor to be made."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool


@dataclass(frozen=True)
class _Given:
    """A tensor that the module was given, and returns as it is."""

    index: int


class StandIns:
    """Stand-ins for the modules that are calls of the graph.

    Args:
        model: the model.
        closed: paths of the modules that stay closed.
        shared: take what one module returns for what its equals return (blocks of one class, options and sizes).

    Attributes:
        closed: the closed modules by path.
        changes: what is not as it was before the forward, as far as a closed module, given by path, may see it:
            (name, what it is now).
        learned: whether a module was run to see what it returns; set it to False before what it is asked about.
    """

    def __init__(self, model: nn.Module, closed: Iterable[str], *, shared: bool = True) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        self.closed = {path: modules[path] for path in closed if path in modules}
        self._shared = shared
        self._known: dict[Any, Any] = {}
        self._latest: dict[Any, Any] = {}
        self._kinds: dict[int, Any] = {}
        self._fakes: dict[int, Tensor] = {}
        self._fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._learning = False
        self.home = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
        self.recorder: Recorder | None = None
        self.changes: Callable[[str, nn.Module], Iterable[tuple[str, Any]]] = lambda *_: ()
        self.learned = False

    @contextlib.contextmanager
    def in_place(self, identities: Mapping[str, nn.Module]) -> Iterator[None]:
        """Let the stand-ins answer in this block, and ``identities`` return what they are given."""
        stand_ins = ((m, self._stand_in(path, m, vars(m).get("forward"))) for path, m in self.closed.items())
        with with_forwards(stand_ins), as_identities(identities.values()):
            yield

    def _stand_in(self, path: str, module: nn.Module, own: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._learning or self.recorder is None:
                run = own or type(module).forward.__get__(module)
                return run(*args, **kwargs)
            return self._answer(self.recorder, path, module, args, kwargs)

        return forward

    def _answer(
        self, recorder: Recorder, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        given = _tensors((args, kwargs))
        origins = recorder.origins
        tokens = (
            origins.token(args),
            origins.token(kwargs),
            tuple(origins.gradient(t) for t in given),
            ("training", tuple(dict.fromkeys(m.training for m in module.modules()))),
            ("switches", *switches()),
            tuple((name, origins.token(value)) for name, value in self.changes(path, module)),
        )
        with origins.pause():
            template = self._template(module, args, kwargs)
            number = (
                recorder.calls
            )  # not of the operations: those that nobody uses may be missing from a graph
            recorder.calls += 1
            made: list[Tensor] = []

            def fill(leaf: Any) -> Any:
                if isinstance(leaf, _Given):
                    return given[leaf.index]
                if not isinstance(leaf, _Like):
                    return leaf
                made.append(_fresh(leaf, number * 64 + len(made), origins))
                return made[-1]

            result = torch.utils._pytree.tree_map(fill, template)
        recorder.add(f"call of '{path}'", tokens, made, effect=True)
        return result

    # --- what a module returns ------------------------------------------------------------------------

    def _template(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = _tensors((args, kwargs))
        sizes = tuple((tuple(t.shape), t.stride(), t.dtype, str(t.device)) for t in given)
        rest = repr(map_tensors(lambda t: "tensor", (args, kwargs)))
        key = (self._kind(module), module.training, sizes, rest)
        tracked = tuple(t.requires_grad for t in given)
        if not torch.is_grad_enabled() and key in self._latest:
            return self._latest[key]  # the shapes are the same
        if (key, tracked) not in self._known:
            # whatever autocast makes of the dtypes in it: one that fits is all that the code around it needs
            self._known[key, tracked] = self._latest[key] = self._learn(module, args, kwargs)
        return self._known[key, tracked]

    def _kind(self, module: nn.Module) -> Any:
        if not self._shared:
            return id(module)
        if id(module) not in self._kinds:
            owned = [*module.named_parameters(), *module.named_buffers()]
            shapes = tuple((n, tuple(t.shape), t.dtype, t.requires_grad) for n, t in owned if not _lazy(t))
            self._kinds[id(module)] = type(module), repr(module), shapes
        return self._kinds[id(module)]

    def _learn(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module once on fake tensors, its own included: nothing of it changes."""
        self._learning = self.learned = True
        fakes: dict[int, Tensor] = {}
        given = _tensors((args, kwargs))
        for leaf in torch.utils._pytree.tree_leaves((args, kwargs)):
            if not isinstance(leaf, Tensor) and _holds_tensor(leaf):
                raise CannotStandIn(f"a closed {type(module).__name__} takes {an(leaf)} of tensors")

        def fake(tensor: Tensor) -> Tensor:
            if id(tensor) not in fakes:
                fakes[id(tensor)] = self._fake_input(tensor)
            return fakes[id(tensor)]

        try:
            # what it keeps of a call on fakes is not kept
            with unchanged(module, tensors=False), undrawn(), quiet_fakes(), self._fake_mode, unchecked():
                inputs = map_tensors(fake, (args, kwargs))
                owned = [
                    *module.named_parameters(remove_duplicate=False),
                    *module.named_buffers(remove_duplicate=False),
                ]
                own = {name: self._fake(t) for name, t in owned}
                result = torch.func.functional_call(module, own, *inputs)
        except Exception as error:
            raise CannotStandIn(
                f"a closed {type(module).__name__} does not run without data ({type(error).__name__}: "
                f"{(str(error).strip().splitlines() or [''])[0][:120]})"
            ) from error
        finally:
            self._learning = False
        places = {id(fakes[id(t)]): i for i, t in reversed(list(enumerate(given)))}

        def template(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                if _holds_tensor(leaf):
                    raise CannotStandIn(
                        f"a closed {type(module).__name__} returns tensors inside of {an(leaf)}"
                    )
                return leaf
            if id(leaf) in places:
                return _Given(places[id(leaf)])
            return _Like(tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad)

        return torch.utils._pytree.tree_map(template, result)

    def _fake(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._fakes:
            self._fakes[id(tensor)] = self._fake_input(tensor)
        return self._fakes[id(tensor)]

    def _fake_input(self, tensor: Tensor) -> Tensor:
        with torch.no_grad():
            device = self.home if tensor.is_meta else tensor.device
            with self._fake_mode:
                made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        made.requires_grad_(tensor.requires_grad)
        if isinstance(tensor, nn.Parameter):
            return made
        if not tensor.requires_grad:
            return made
        with self._fake_mode, torch.enable_grad():  # no leaf: closed code may write into it
            return made.clone()


def _lazy(tensor: Tensor) -> bool:
    return isinstance(tensor, UninitializedTensorMixin)


def _tensors(value: Any) -> list[Tensor]:
    return [v for v in torch.utils._pytree.tree_leaves(value) if isinstance(v, Tensor)]


def _holds_tensor(value: Any, depth: int = 3) -> bool:
    if isinstance(value, Tensor):
        return True
    if depth == 0 or isinstance(value, (type, nn.Module)) or callable(value):
        return False
    inner = value if isinstance(value, (list, tuple, set)) else (attributes_of(value) or {}).values()
    return any(_holds_tensor(v, depth - 1) for v in inner)


def _fresh(like: _Like, number: int, origins: Origins) -> Tensor:
    """A tensor of that kind with numbers of its own, the same in every run; no leaf, so that code may write into it."""
    with torch.no_grad():
        made = torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device=like.device)
        if any(step == 0 and size > 1 for step, size in zip(like.stride, like.shape, strict=True)):
            made = torch.empty(
                like.shape, dtype=like.dtype, device=like.device
            )  # an expanded one cannot be filled
        if like.dtype.is_floating_point:
            _fill(made, number)
        else:
            made.fill_(like.dtype is torch.bool)
    if not like.requires_grad or not torch.is_grad_enabled():
        return made
    anchor = torch.zeros((), requires_grad=True)
    origins.named(anchor, ("result", number))  # its number tells it: nobody needs to read what it holds
    with torch.enable_grad():
        grown: Tensor = _Grown.apply(anchor, lambda: made)
    return grown


def _fill(made: Tensor, number: int) -> None:
    """Numbers between 0.5 and 1.5, the same on every device; of a large tensor they repeat, as drawing takes long."""
    generator = torch.Generator().manual_seed(number)
    drawn = (torch.rand(min(made.numel(), _DRAWN), generator=generator) + 0.5).to(made.device, made.dtype)
    dense = made if made.is_contiguous() else torch.empty(made.shape, dtype=made.dtype, device=made.device)
    flat = dense.view(-1)
    whole = made.numel() // _DRAWN * _DRAWN
    if whole:
        flat[:whole].view(-1, _DRAWN).copy_(drawn)
    flat[whole:].copy_(drawn[: made.numel() - whole])
    if dense is not made:
        made.copy_(dense)


class _Grown(torch.autograd.Function):
    """A tensor as if it were computed from another: it has a gradient, and is neither a leaf nor a view."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, made: Callable[[], Tensor]) -> Tensor:
        return made()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.sum().to("cpu", torch.float32), None
