"""A multicast room in virtual time: the server's own code, and models of its clients."""
