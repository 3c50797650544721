"""Virtual machines' disk images, which qemu decodes: qcow2, vmdk, vhdx, vdi, vhd.

headers.py   what an image says of itself, read before qemu sees it: format, other files that it names
whole.py     is all of it there? What is missing at its end qemu takes for zeroes
image.py     a `Source`: a qemu-nbd of our own, read as an export
"""
