"""Row provenance: where every sample lies in a value of a model, and a proof that no sample sees another on the way."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from graphaug.capture.recording.tables import undisturbed
from graphaug.capture.state import unchanged, undrawn
from graphaug.proof.independence.follow import Follow
from graphaug.proof.independence.outside import Outside, stated
from graphaug.proof.independence.places import NOTHING, NUMBERS, Meeting, Numbers, Proof, Rows, State, Verdict
from graphaug.proof.independence.symbols import PRIME, RowCount
from graphaug.proof.independence.watch import Watch, following, names_the_question
from graphaug.proof.independence.where import module_paths
from graphaug.torch_private import BackwardCFunction, FakeTensor, FakeTensorMode, quiet_fakes, storage_of


class Forward(nn.Module):
    """A function of a model's modules, as a module: so that its parameters can be exchanged for a call."""

    def __init__(self, model: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, values: dict[str, Any]) -> Any:
        """Run the function."""
        return self.run(values)


def prove(
    model: nn.Module,
    run: Callable[[dict[str, Any]], Any],
    values: Mapping[str, Any],
    dims: Mapping[int, int],
    stop: bool = False,
) -> list[Proof]:
    """Follow the rows of a batch from a model's inputs to a value.

    Nothing is computed: parameters, buffers and inputs are fake for the time, with a symbol for the number of rows. The
    model, its modes and every generator are left as they were.

    Args:
        model: owner of the modules, in the modes that are asked about.
        run: computes values from the inputs by name, with the model's own modules; gives a list of them.
        values: examples of the inputs, which may hold tensors in nested containers.
        dims: the dimension of samples of every input tensor that has one, by the tensor's ``id``.
        stop: give up where rows first meet, whatever comes of it.

    Returns:
        For every value the proof, or what stands against it. A forward that cannot be followed to its end gives one.
    """
    lazy = next((n for n, p in model.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        return [_unknown(f"the parameter '{lazy}' has no shape yet")]
    with undisturbed(model, values), undrawn(), unchanged(model, tensors=False), quiet_fakes():
        return _traced(model, run, values, dims, stop)


def _unknown(why: str) -> Proof:
    return Proof("unknown", None, Meeting("unknown", "", why))


def _traced(
    model: nn.Module,
    run: Callable[[dict[str, Any]], Any],
    values: Mapping[str, Any],
    dims: Mapping[int, int],
    stop: bool,
) -> list[Proof]:
    count = RowCount()
    fake = FakeTensorMode(shape_env=count, allow_non_fake_inputs=True)
    held = _held(model)
    if any(n and n % PRIME == 0 for _, t in held for n in t.shape):
        return [_unknown(f"a parameter has a size that {PRIME} divides, which stands for the number of rows")]
    fakes: dict[str, Tensor] = {f"model.{name}": fake.from_tensor(t, static_shapes=True) for name, t in held}
    storages = {storage_of(f): name.removeprefix("model.") for name, f in fakes.items()}

    def owned(tensor: Tensor) -> str:
        """The name of a tensor's memory among the model's, or of a constant of its code."""
        if not isinstance(tensor, FakeTensor):
            return "a tensor that the model holds"
        place = storage_of(tensor)
        return "" if place is None else storages.get(place, "")

    follow, watch = Follow(count, module_paths(model), owned, stop), Watch(count)
    for tensor in fakes.values():
        follow.states[tensor] = None

    def has_rows(tensor: Tensor) -> bool:
        return follow.state(tensor) is not None

    outside = first = Outside(model)
    call = _Call(Forward(model, run), fakes, follow, watch, fake)
    changed = ""
    try:
        out = _called(call, values, dims)
        drawn = outside.drawn()
        # a table that is made once and kept is no state
        if not drawn and outside.changed(fakes, call.given, has_rows):
            outside = Outside(model)
            call.given = dict(fakes)
            out = call(values, dims)
        changed = drawn or outside.changed(fakes, call.given, has_rows)
        call.note_mode(model, values, dims, changed)
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), "")[:160]
        seen = follow.decision or Meeting("failure", "", f"tracing fails: {type(error).__name__}: {said}")
        return [_verdict(follow, seen)]
    finally:
        first.restore()
    against = _against(model, follow, watch, changed)
    states = [_state(follow, value) for value in out]
    if against is None:
        against = _own_backward(out)
    sizes = [follow.by_sizes(value) for value in out]
    del out
    if against is None and _escaped(follow, set(map(id, fakes.values()))):
        against = Meeting("state", "", "a value of the prefix is kept outside of the model")
    return [_verdict(follow, against, s, d) for s, d in zip(states, sizes, strict=True)]


def _called(call: _Call, values: Mapping[str, Any], dims: Mapping[int, int]) -> Any:
    """What the forward gives; of one that asks its input for a gradient, which has to be a leaf, without gradients."""
    try:
        return call(values, dims)
    except RuntimeError as error:
        if "requires_grad flags of leaf" not in str(error):
            raise
        call.gradients = False
        return call(values, dims)


def _held(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer, by all of its names."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _state(follow: Follow, value: Any) -> State:
    if not isinstance(value, Tensor):
        return Meeting("unknown", "", "the value is no tensor")
    found = follow.state(value)
    behind: Meeting | None = follow.assumed.get(value)
    return found if behind is None or isinstance(found, Meeting) else behind


class _Call:
    """Calls a forward on fresh fake inputs, with fake parameters."""

    def __init__(
        self, forward: Forward, fakes: dict[str, Tensor], follow: Follow, watch: Watch, fake: FakeTensorMode
    ) -> None:
        self.forward, self.follow, self.watch, self.fake = forward, follow, watch, fake
        self.fakes, self.given = fakes, dict(fakes)
        self.gradients = self.mode = True

    def note_mode(
        self, model: nn.Module, values: Mapping[str, Any], dims: Mapping[int, int], changed: str
    ) -> None:
        """Note whether the forward asks for the grad mode and, if nothing it keeps has changed, acts by it."""
        if not self.watch.mode:
            self.watch.mode = names_the_question(model)
        if self.watch.mode and not self.watch.hooked and not changed and self.follows_the_mode(values, dims):
            self.watch.differs = True

    def follows_the_mode(self, values: Mapping[str, Any], dims: Mapping[int, int]) -> bool:
        """Whether the forward computes something else without gradients: which functions it calls, and of what."""
        records = []
        for mode in (True, False):
            follow = Follow(self.follow.count, self.follow.paths, self.follow.owned)
            watch = Watch(self.follow.count, calls=[])
            call = _Call(self.forward, self.fakes, follow, watch, self.fake)
            for tensor in self.fakes.values():
                follow.states[tensor] = None
                watch.number(tensor)
            call.gradients, call.mode = self.gradients and mode, mode
            try:
                out = call(values, dims)
            except Exception:
                return True
            records.append((watch.calls, watch.number(out)))
        return records[0] != records[1]

    def __call__(self, values: Mapping[str, Any], dims: Mapping[int, int]) -> Any:
        with self.fake, self.follow.count.kernel():
            inputs = torch.utils._pytree.tree_map(lambda v: self._input(v, dims), dict(values))
        with following(self.follow, self.watch, self.fake, self.mode):
            # writes back into `given` what the forward puts in the place of a buffer
            try:
                return torch.func.functional_call(self.forward, self.given, (inputs,), tie_weights=False)
            finally:
                torch.clear_autocast_cache()  # it would keep fake weights

    def _input(self, value: Any, dims: Mapping[int, int]) -> Any:
        """A fake tensor like an example, with the symbol for its number of rows."""
        if not isinstance(value, Tensor):
            return value
        dim = dims.get(id(value))
        sizes = [self.follow.count.rows if d == dim else n for d, n in enumerate(value.shape)]
        device = value.device
        if value.is_meta:  # it lies where the model does
            device = next((t.device for t in self.given.values() if not t.is_meta), device)
        made = torch.empty(sizes, dtype=value.dtype, device=device)
        if dim is not None and self.gradients and (made.is_floating_point() or made.is_complex()):
            made = made.requires_grad_().clone()  # no leaf: a forward may write into its input
        if (
            value.dim() == 4
            and not value.is_contiguous()
            and value.is_contiguous(memory_format=torch.channels_last)
        ):
            made = made.contiguous(memory_format=torch.channels_last)
        self.follow.states[made] = None if dim is None else Rows(dim)
        return made


def _against(model: nn.Module, follow: Follow, watch: Watch, changed: str) -> Meeting | None:
    """What speaks against the rows beside the operations on them."""
    count = follow.count
    if count.asked:
        return Meeting("place", "", f"the forward asks {count.asked}")
    if count.fixed:
        return Meeting("unknown", "", f"the number of rows becomes a plain number{count.fixed.rstrip()}")
    if watch.hooked:
        return Meeting("unknown", "", f"the forward looks into its own backward ({watch.hooked})")
    if watch.differs:
        return Meeting("unknown", "", f"the forward computes something else without gradients ({watch.mode})")
    if changed:
        return Meeting("state", "", changed)
    kept = ("running_mean", "running_var", "num_batches_tracked")
    for name, meeting in follow.state_writes:
        if not (follow.statistics and name.endswith(kept)):
            held = stated(model, name) if name in dict(_held(model)) else name
            return dataclasses.replace(meeting, why=f"{held} keeps state of the batch", module="")
    return None


def _own_backward(out: Any) -> Meeting | None:
    """The first function behind some values whose backward is Python code."""
    seen: set[Any] = set()
    stack: list[Any] = [v.grad_fn for v in out if isinstance(v, Tensor)]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            name = type(node).__name__.removesuffix("Backward")
            op = name if name == "CheckpointFunction" else ""  # torch's own runs the forward again
            return Meeting("unknown", op, f"{name} has a backward of its own, which is not followed")
        stack.extend(following_node for following_node, _ in node.next_functions)
    return None


def _escaped(follow: Follow, owned: set[int]) -> bool:
    """Whether a value with rows or a gradient is still held by somebody, now that the output is gone."""

    def held() -> bool:
        return any(
            id(t) not in owned and (state is not None or t.requires_grad)
            for t, state in list(follow.states.items())
        )

    # young garbage first: a whole collection takes a second in a process with many libraries
    for generation in range(3):
        if not held():
            return False
        gc.collect(generation)
    return held()


def _verdict(
    follow: Follow, against: Meeting | None, state: State = None, sizes: Rows | None = None
) -> Proof:
    place = state if isinstance(state, Rows) else None
    meeting = state if isinstance(state, Meeting) else against
    if (
        meeting is not None
        and meeting.kind == "unknown"
        and against is not None
        and against.kind != "unknown"
    ):
        meeting = against  # what is known of the forward counts more than what is not known of an operation
    if meeting is None and place is None:
        meeting = Meeting("place", "", NUMBERS if isinstance(state, Numbers) else NOTHING)
    verdict: Verdict = "proved"
    if meeting is not None:
        verdict = "unknown" if meeting.kind in ("unknown", "failure") else "coupled"
    elif follow.statistics:
        verdict, meeting = "statistics", follow.statistics[0]
    known = (tuple(follow.statistics), follow.ops, sizes, follow.count.least, tuple(follow.draws))
    return Proof(verdict, place, meeting, *known)
