"""What each verb of the command line does, from its options to its end.

opening.py     an image and a target, opened as the options say
restoring.py   restore --erase, and verify
copying.py     restore without --erase: a file copy
preparing.py   imagescan, info, capture
"""
