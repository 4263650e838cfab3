"""A small ESM-IF1 for tests: its encoder's weights, and a file of them as the original is published."""

from argparse import Namespace

import numpy as np
import torch

from cryoscan.models.esm_if1 import EsmIf1Encoder, EsmIf1Sizes

SMALL = EsmIf1Sizes(layers=2, hidden=48, node=(20, 6), edge=(8, 1), graph_layers=2, neighbours=12)
SETTINGS = Namespace(
    arch="gvp_transformer_invariant_gvp",
    encoder_embed_dim=512,
    encoder_layers=2,
    encoder_attention_heads=8,
    encoder_ffn_embed_dim=48,
    gvp_node_hidden_dim_scalar=20,
    gvp_node_hidden_dim_vector=6,
    gvp_edge_hidden_dim_scalar=8,
    gvp_edge_hidden_dim_vector=1,
    gvp_num_encoder_layers=2,
    gvp_top_k_neighbors=12,
    dropout=0.1,
)
AS_TRAINED = {  # how names begin in the published file
    "gvp_encoder.embed_graph.embed_node": "gvp_encoder.W_v",
    "gvp_encoder.embed_graph.embed_edge": "gvp_encoder.W_e",
    "gvp_encoder.embed_graph.embed_confidence": "gvp_encoder.embed_score",
    "embed_confidence": "embed_scores.0",
    "embed_dihedrals": "embed_ingraham_features",
    "embed_gvp_output": "embed_gvp_in_local_frame.0",
    "embed_gvp_input_features": "embed_features_in_local_frame.0",
}


def weights() -> dict[str, torch.Tensor]:
    """Of every name, numbers that are the same everywhere; large where the backbone speaks."""
    state = EsmIf1Encoder(SMALL).state_dict()
    sizes = {"gvp_encoder": 2.0, "embed_tokens": 0.02}
    return {
        name: torch.from_numpy(
            sizes.get(name.split(".")[0], 0.4) * (np.random.default_rng(place).random(state[name].shape) - 0.5)
        ).float()
        for place, name in enumerate(sorted(state))
    }


def checkpoint(**changes) -> dict[str, object]:
    """What the published file holds: settings, the encoder under the names it was trained with, and a decoder."""
    model = {}
    for name, value in weights().items():
        start = next((old for old in AS_TRAINED if name.startswith(old + ".")), "")
        model["encoder." + AS_TRAINED.get(start, "") + name.removeprefix(start)] = value
    model |= {"encoder.version": torch.ones(1), "encoder.embed_positions._float_tensor": torch.ones(1)}
    model |= {"decoder.embed_tokens.weight": torch.ones(35, 8), "decoder.seq_logits_projection.bias": torch.ones(3)}
    return {"args": SETTINGS, "model": model, **changes}
