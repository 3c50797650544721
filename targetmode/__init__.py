"""A machine that offers its disks over the network."""
