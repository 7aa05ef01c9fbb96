"""The app of region ``eu``: ``modal deploy modal_deployment/modal_hf_eu.py`` from the root of the project."""

from modal_deployment.choice import define

app = define("eu")
