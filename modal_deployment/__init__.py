"""Three regional Modal apps from one definition.

``choice`` and the ``modal_hf_*`` files run where one deploys; ``definition``, ``answering``, ``web``, ``gateway`` and
the engines run in containers too, where neither the catalog nor the ``parallax`` package exists: what they need of
the catalog is the ``plan``, baked into the image's environment.
"""
