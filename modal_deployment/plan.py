"""What one regional app serves: chosen from the catalog when it is deployed, read again in every container.

Standard library only, because containers import it before anything else.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

PLAN_VARIABLE: Final = "PARALLAX_MODAL_PLAN"
"""Environment variable that carries the plan, as JSON, into the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """One model of the app."""

    name: str
    """Its name in the catalog, and the value of the class parameter ``model``."""
    upstream: str
    revision: str | None
    max_model_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionPlan:
    """One app. The options hold for the whole class, so every model of the region shares them."""

    region: str
    """The region's name in the catalog."""
    app: str
    modal_region: str
    gpu: str
    max_containers: int
    """Containers per model: each value of the class parameter has its own pool."""
    max_inputs: int
    scaledown_window_s: int
    startup_timeout_s: int
    timeout_s: int
    snapshot: str
    """``off``, ``memory`` (the imported libraries) or ``gpu`` (the loaded engine as well)."""
    models: tuple[ModelPlan, ...]

    def to_json(self) -> str:
        """The plan as it is baked into the image."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "RegionPlan":
        """The plan baked into this container's image.

        Raises:
            RuntimeError: There is none: the definition was imported by itself.
        """
        document = env.get(PLAN_VARIABLE)
        if document is None:
            raise RuntimeError(
                f"{PLAN_VARIABLE} is not set: deploy modal_hf_us.py, modal_hf_eu.py or modal_hf_apac.py, "
                "not the definition they share"
            )
        fields = json.loads(document)
        models = tuple(ModelPlan(**model) for model in fields.pop("models"))
        return cls(models=models, **fields)

    def model(self, name: object) -> ModelPlan | None:
        """The model of this catalog name or upstream name, if the app serves it."""
        return next((model for model in self.models if name in (model.name, model.upstream)), None)
