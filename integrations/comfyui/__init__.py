"""ComfyUI nodes of faceprior: this folder goes, or is linked, into `custom_nodes`."""

from .nodes import (  # noqa: TID252 - ComfyUI gives the folder a name of its own
    NODE_CLASS_MAPPINGS,
    NODE_DISPLAY_NAME_MAPPINGS,
)

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
