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
    # NVIDIA's data sheets "A100 Tensor Core GPU", "H100 Tensor Core GPU" and "H200 Tensor Core GPU". The latter two
    # give peaks with sparsity, twice these.
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 1555e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2039e9),
    "NVIDIA A100-PCIE-40GB": Chip(312e12, 1555e9),
    "NVIDIA A100 80GB PCIe": Chip(312e12, 1935e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 3350e9),  # SXM
    "NVIDIA H100 PCIe": Chip(756e12, 2000e9),
    "NVIDIA H100 NVL": Chip(835e12, 3900e9),
    "NVIDIA H200": Chip(989e12, 4800e9),  # SXM
    "NVIDIA H200 NVL": Chip(835e12, 4800e9),
}


def find(device_kind: str) -> Chip | None:
    """The data sheet of exactly this kind of device, or None: a MIG slice's name begins with that of its whole GPU."""
    return _CHIPS.get(device_kind)
