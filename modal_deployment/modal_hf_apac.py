"""The app of region ``apac``: ``modal deploy modal_deployment/modal_hf_apac.py`` from the root of the project."""

from modal_deployment.choice import define

app = define("apac")
