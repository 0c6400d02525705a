"""Ids of the five special pieces, and which of them masking and dropping treat apart."""

from typing import NamedTuple


class SpecialIds(NamedTuple):
    """Vocabulary ids by role."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    @property
    def never_drop(self) -> tuple[int, ...]:
        """Ids that importance always keeps (docs/method.md 3)."""
        return (self.cls, self.sep, self.mask, self.unk)

    @property
    def frozen(self) -> tuple[int, ...]:
        """Ids whose importance never moves."""
        return (*self.never_drop, self.pad)

    @property
    def unmaskable(self) -> tuple[int, ...]:
        """Ids that are no prediction target; [UNK] stands for a word and is one."""
        return (self.pad, self.cls, self.sep, self.mask)
