"""The contenders of ``make bench``: a raw floor, Celery, and Parallax, measured the same way."""
