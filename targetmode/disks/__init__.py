"""The disks of this machine: what there is, what is written on them, and whether one may be offered or overwritten."""
