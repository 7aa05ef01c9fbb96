"""A model over HTTP that answers at once: ``python -m tests.benchmarks.compare.http_model PORT``."""

import sys

from parallax_cli.mock_endpoint import run
from parallax_cli.mock_script import Script, Step
from tests.benchmarks.compare.figures import MODELS
from tests.benchmarks.compare.jobs import ANSWER

if __name__ == "__main__":
    run(Script(default=Step(text=ANSWER.text), models=MODELS), host="127.0.0.1", port=int(sys.argv[1]))
