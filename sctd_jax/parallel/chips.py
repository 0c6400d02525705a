"""Data sheets of devices by JAX's `device_kind`. A TPU device is a chip (v3: half of one)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Data sheet of a JAX device."""

    flops: float  # dense bf16 peak, FLOP/s
    bandwidth: float  # memory bandwidth, bytes/s
    hbm_gib: float = 0.0  # memory that a program may use by libtpu 0.0.42's compiler; TPUs only

    @property
    def hbm_bytes(self) -> int:
        """`hbm_gib` in bytes."""
        return int(self.hbm_gib * 2**30)


_CHIPS = {
    "TPU v3": Chip(61.5e12, 450e9),
    "TPU v4": Chip(275e12, 1228e9, 30.75),
    "TPU v5 lite": Chip(197e12, 819e9, 15.75),
    "TPU v5e": Chip(197e12, 819e9, 15.75),
    "TPU v5": Chip(459e12, 2765e9, 95.74),
    "TPU v5p": Chip(459e12, 2765e9, 95.74),
    "TPU v6 lite": Chip(918e12, 1640e9, 31.25),
    "TPU v6e": Chip(918e12, 1640e9, 31.25),
    "NVIDIA A100": Chip(312e12, 2039e9),
    "NVIDIA H100": Chip(989e12, 3350e9),
    "NVIDIA H200": Chip(989e12, 4800e9),
}


def find(device_kind: str) -> Chip | None:
    """The data sheet of a kind of device, or None if it is not known."""
    known = [name for name in _CHIPS if device_kind.startswith(name)]
    return _CHIPS[max(known, key=len)] if known else None
