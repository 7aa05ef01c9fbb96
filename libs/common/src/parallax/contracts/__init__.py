"""Messages, identifiers and routing: everything two services must agree on, and nothing that does I/O."""
