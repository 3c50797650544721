"""The NBD protocol, as a server and as a client: no policy, no disk owner, no web."""
