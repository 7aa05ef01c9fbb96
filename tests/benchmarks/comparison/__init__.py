"""The comparison measured on answers with known truth: a generator, the answers it made, scenarios and a table."""
