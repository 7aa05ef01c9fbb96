"""The HTTP resources: each module holds the handlers of one noun."""
