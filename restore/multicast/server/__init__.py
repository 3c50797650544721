"""The sending side: a room of clients, the stream, its control API, and what the admin sees of it."""
