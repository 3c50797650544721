"""An engine that puts images on disks, and proves that they are right."""
