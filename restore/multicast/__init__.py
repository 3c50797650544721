"""One stream restores a room: an image sent to a group, and taken from it by whoever is there.

    packet.py      what a datagram says
    layout.py      an image as numbered chunks of up to 1 MiB, each with a digest; chunks as segments, one a datagram
    chunkset.py    sets of chunks
    carousel.py    what to send next, so that everyone gets what they lack and nobody waits for anybody
    pacing.py      how fast
    assembly.py    datagrams, in whatever order and state, into chunks
    session.py     the messages of the control API, which server and client both know
    server/  client/   sockets, threads and HTTP around these

Up to session.py it is pure: no clock, no socket, no file.
"""
