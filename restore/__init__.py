"""An engine that puts images on disks, and proves that they are right."""

__version__ = "0.1.0"
