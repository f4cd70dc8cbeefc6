"""A family's table applied to the tensors of one model: which region of ours is which of theirs, each exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from moekit.errors import nearest
from moekit_hf.fields import FormatError
from moekit_hf.rules import Ignored, Rule, Shape

Read = Callable[[str, Shape, Shape], Tensor]
"""Reads the slice of a tensor at an offset and of some sizes."""


@dataclass(frozen=True)
class Link:
    """One region of ours, and what it is in theirs.

    Args:
        rule: that it comes from.
        theirs: their tensor.
        ours: our tensor.
        expert: index in our first dimension; None if that holds no experts.
        rows: first row of the region, and the row after its last, within the expert.
        shape: of the whole region.
        count: experts in our tensor.
    """

    rule: Rule
    theirs: str
    ours: str
    expert: int | None
    rows: tuple[int, int]
    shape: Shape
    count: int

    @property
    def stacked(self) -> bool:
        """Whether theirs holds all experts in one tensor."""
        return self.rule.lead == "stack"

    @property
    def theirs_shape(self) -> Shape:
        """The shape of their tensor."""
        one = self.rule.view.theirs_shape(self.shape)
        return (self.count, *one) if self.stacked else one

    def to_ours(self, read: Read) -> Tensor:
        """The region, read from their tensor: of stacked experts, only this one."""
        shape = self.theirs_shape
        if not self.stacked:
            return self.rule.view.to_ours(read(self.theirs, (0,) * len(shape), shape)).reshape(self.shape)
        offset = (self.expert or 0, *(0 for _ in shape[1:]))
        return self.rule.view.to_ours(read(self.theirs, offset, (1, *shape[1:]))[0]).reshape(self.shape)

    def to_theirs(self, read: Read) -> Tensor:
        """Their tensor, or their slice for this expert, read from the region."""
        start = self.rows[0]
        if self.expert is None:
            region = read(self.ours, (start, *(0 for _ in self.shape[1:])), self.shape)
        else:
            offset = (self.expert, start, *(0 for _ in self.shape[1:]))
            region = read(self.ours, offset, (1, *self.shape))[0]
        return self.rule.view.to_theirs(region).contiguous()


class Table:
    """All links of one model.

    Args:
        family: how messages name the family.
        rules: the family's table.
        ours: our tensors, parameters and buffers, with their shapes.
        left: prefixes of ours that the family has no tensors for, and that are not exported.

    Attributes:
        ours: for each of our tensors, its links by expert (None: it holds no experts), each tiling its rows.
        theirs: for each of their tensors, its links: one, or one for each stacked expert.

    Raises:
        FormatError: an element of ours is in no rule, or in two; or a tensor of theirs is.
    """

    def __init__(self, family: str, rules: Sequence[Rule], ours: Mapping[str, Shape], left: Sequence[str] = ()) -> None:
        self.family, self.shapes = family, dict(ours)
        self.ours: dict[str, dict[int | None, list[Link]]] = {name: defaultdict(list) for name in ours}
        self.theirs: dict[str, list[Link]] = defaultdict(list)
        for rule in rules:
            for name, layer in rule.layers(list(ours)):
                for link in _links(rule, name, layer, ours[name]):
                    self.ours[name][link.expert].append(link)
                    self.theirs[link.theirs].append(link)
        for name in [name for name in self.ours if name.startswith(tuple(left))] if left else []:
            del self.ours[name]
        for name, by_expert in self.ours.items():
            _check_tiled(family, name, ours[name], by_expert)
        for name, links in self.theirs.items():
            if len(links) != (links[0].count if links[0].stacked else 1):
                raise FormatError(f"{family}: two rules of its table name the tensor '{name}'")

    def pieces(self, name: str, read: Read) -> Iterator[Tensor]:
        """One tensor of ours, in order: region by region, so that no more than one tensor of theirs is in memory."""
        for _, links in sorted(self.ours[name].items(), key=lambda item: item[0] or 0):
            yield from (link.to_ours(read) for link in sorted(links, key=lambda link: link.rows))

    def their_pieces(self, name: str, read: Read) -> Iterator[Tensor]:
        """One tensor of theirs, in order: expert by expert if they are stacked."""
        for link in sorted(self.theirs[name], key=lambda link: link.expert or 0):
            yield link.to_theirs(read)

    def check_names(self, found: Mapping[str, Shape], ignored: Sequence[Ignored], where: str) -> dict[str, str]:
        """Compares the tensors of a folder with those that the table expects.

        Args:
            found: the shapes of the folder's tensors.
            ignored: what may be there in addition.
            where: how messages name the folder.

        Returns:
            The tensors that are ignored, each with the reason.

        Raises:
            FormatError: naming tensors that are missing, not known, or of another shape.
        """
        missing = [name for name in self.theirs if name not in found]
        extra = [name for name in found if name not in self.theirs]
        reasons = {name: each.why for name in extra for each in ignored if each.fits(name)}
        unknown = [name for name in extra if name not in reasons]
        wrong = [
            f"{name} is {list(found[name])}, expected {list(links[0].theirs_shape)}"
            for name, links in self.theirs.items()
            if name in found and found[name] != links[0].theirs_shape
        ]
        lines = []
        for what, names in (("missing", missing), ("not of this family", unknown), ("of another shape", wrong)):
            if names:
                more = f", and {len(names) - 3} more" if len(names) > 3 else ""
                lines.append(f"  {what}: {', '.join(names[:3])}{more}")
        if lines:
            near = nearest(unknown[0], missing) if unknown and missing else ""
            lines += [f"  did you mean '{near}'?"] if near else []
            raise FormatError(
                "\n".join(
                    [f"{where}: its tensors are not those that its config.json describes ({self.family})", *lines]
                )
            )
        return reasons


def _links(rule: Rule, name: str, layer: str, shape: Shape) -> Iterator[Link]:
    start, end = rule.region(shape)
    theirs = rule.theirs.replace("{i}", layer)
    if not rule.lead:
        yield Link(rule, theirs, name, None, (start, end), (end - start, *shape[1:]), 1)
        return
    for e in range(shape[0]):
        of = theirs.replace("{e}", str(e))
        yield Link(rule, of, name, e, (start, end), (end - start, *shape[2:]), shape[0])


def _check_tiled(family: str, name: str, shape: Shape, by_expert: Mapping[int | None, Sequence[Link]]) -> None:
    if not by_expert:
        raise FormatError(f"{family}: no rule of its table fills our tensor '{name}' {list(shape)}")
    for expert, links in by_expert.items():
        rows, at = shape[0] if expert is None else shape[1], 0
        for start, end in sorted(link.rows for link in links):
            if start != at:
                break
            at = end
        if at != rows or sum(link.rows[1] - link.rows[0] for link in links) != rows:
            at_expert = "" if expert is None else f", expert {expert}"
            raise FormatError(f"{family}: its table does not fill the rows of '{name}'{at_expert} exactly once")
    if None not in by_expert and len(by_expert) != shape[0]:
        raise FormatError(f"{family}: its table fills {len(by_expert)} of the {shape[0]} experts of '{name}'")
