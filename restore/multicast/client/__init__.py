"""The receiving side: a stream as a `Source` whose chunks come in an order of their own."""
