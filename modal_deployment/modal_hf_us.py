"""The app of region ``us``: ``modal deploy modal_deployment/modal_hf_us.py`` from the root of the project."""

from modal_deployment.choice import define

app = define("us")
