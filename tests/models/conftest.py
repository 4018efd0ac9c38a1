"""The fused form of the models runs where the kernels do."""

from ..kernels.conftest import device

__all__ = ["device"]
