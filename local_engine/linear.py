"""Matrix products on a CPU by oneDNN, which takes half the time of torch's default there (MKL, on AMD) for many rows.

The model loader swaps it in; results are the same up to float32 rounding.
"""

import torch
from torch.nn import functional

_FEW_ROWS = 16  # below this the default is faster


class OneDnnLinear(torch.nn.Linear):
    """A linear layer whose forward pass picks the faster of two implementations by the number of rows."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # torch's name
        """Multiply; (..., in) to (..., out)."""
        if input.numel() < _FEW_ROWS * self.in_features:
            return functional.linear(input, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")  # noqa: SLF001


def use_onednn(model: torch.nn.Module) -> None:
    """Swap the linear layers of a float32 model on a CPU, where this build of torch has oneDNN."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for module in model.modules():
        if (
            type(module) is torch.nn.Linear
            and module.weight.dtype == torch.float32
            and module.weight.device.type == "cpu"
        ):
            module.__class__ = OneDnnLinear
