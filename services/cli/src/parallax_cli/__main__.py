"""``python -m parallax_cli`` is the ``parallax`` command."""

from parallax_cli.main import app

if __name__ == "__main__":
    app()
