"""What is written on a disk: partition tables and file system signatures, read through any reader of bytes."""
