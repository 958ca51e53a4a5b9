"""Which further options of a timm network a recipe or a model card may set.

A list of what is allowed, because timm's `create_model` also takes options that open files or change what is returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.errors import UserError, nearest

CONVNEXT_OPTIONS = ("depths", "dims", "kernel_sizes", "ls_init_value", "conv_mlp", "use_grn", "head_init_scale")
ISOTROPIC_OPTIONS = ("depth", "dim")
VIT_OPTIONS = (
    *("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "init_values", "class_token", "img_size"),
    *("pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "patch_drop_rate", "global_pool"),
)
OPTIONS = frozenset((*CONVNEXT_OPTIONS, *ISOTROPIC_OPTIONS, *VIT_OPTIONS, "drop_rate"))


def network_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`kwargs` with JSON's lists as tuples.

    Raises:
        UserError: an option that is not on the list.
    """
    for key in kwargs:
        if key not in OPTIONS:
            raise UserError(
                f"no such option of a network{nearest(key, OPTIONS)}",
                where="model.kwargs",
                value=key,
                remedy=f"Known are {', '.join(sorted(OPTIONS))}",
            )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}
