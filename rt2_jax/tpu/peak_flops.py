"""Peak FLOP/s of the devices that JAX may find, for MFU."""

from __future__ import annotations

from rt2_jax.tpu.chips import CHIPS

# JAX's device_kind -> dense bfloat16 FLOP/s, GPUs by their data sheets.
PEAK_FLOPS = {
  "TPU v5 lite": CHIPS["v5e"].peak_flops,
  "TPU v5e": CHIPS["v5e"].peak_flops,
  "TPU v5": CHIPS["v5p"].peak_flops,
  "TPU v5p": CHIPS["v5p"].peak_flops,
  "TPU v6 lite": CHIPS["v6e"].peak_flops,
  "TPU v6e": CHIPS["v6e"].peak_flops,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989.4e12,
  "NVIDIA H200": 989.4e12,
}
