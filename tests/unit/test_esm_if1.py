"""ESM-IF1: its encoder, and its file of weights, of which no code may run."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_esm_if1 import SETTINGS, checkpoint
from small_proteins import helices, joined

from cryoscan.errors import ConfigError, FormatError, MissingFileError
from cryoscan.models import esm_if1
from cryoscan.models.esm_if1 import EsmIf1Encoder, EsmIf1Sizes, load_esm_if1
from cryoscan.models.structure_embedding import EsmIf1Embedder, embed_chains, embedder_named

GOLDEN = [
    [-0.26661, -0.221537, -0.140401, -0.194764],
    [-0.260477, -0.219667, -0.07308, -0.184064],
    [-0.25923, -0.228254, -0.123606, -0.194106],
    [-0.296453, -0.218074, -0.119982, -0.208112],
    [-0.273705, -0.229361, -0.133504, -0.203098],
]


@pytest.fixture
def file(tmp_path) -> Path:
    torch.save(checkpoint(), tmp_path / "esm_if1.pt")
    return tmp_path / "esm_if1.pt"


def lacking(structure, residue, name):
    return structure.select(~((structure.residues == residue) & (structure.names == name)))


def test_published_sizes_make_the_published_number_of_weights():
    """142 million with a decoder of eight layers, whose sizes are the encoder's: 33.7 million."""
    with torch.device("meta"):
        encoder = EsmIf1Encoder(EsmIf1Sizes())
    assert sum(weight.numel() for weight in encoder.parameters()) == pytest.approx(142e6 - 33.7e6, rel=0.005)


def test_the_encoder_says_what_the_original_says(file):
    """The numbers are those of fair-esm 2.0.0 with these weights, for this chain with two holes."""
    chain = lacking(lacking(helices(15, 12), 5, "N"), 11, "CA")
    vectors = EsmIf1Embedder(file).embed(chain)
    assert vectors.shape == (25, 512)
    found = vectors[[0, 4, 5, 12, 24]][:, [0, 100, 257, 511]]
    torch.testing.assert_close(found, torch.tensor(GOLDEN), atol=2e-5, rtol=1e-4)


def test_neither_place_nor_orientation_matters_but_handedness_does(file):
    embedder = EsmIf1Embedder(file)
    structure = helices(14, 12)
    plain = embedder.embed(structure)
    turn = Rotation.from_euler("zyx", (25, -70, 130), degrees=True).as_matrix()
    turned = replace(structure, positions=structure.positions @ turn.T + (13.0, -250.0, 77.7))
    torch.testing.assert_close(embedder.embed(turned), plain, atol=2e-4, rtol=1e-3)
    assert torch.equal(embedder.embed(structure), plain)
    mirrored = replace(structure, positions=structure.positions * np.array([1, 1, -1]))
    assert float((embedder.embed(mirrored) - plain).abs().max()) > 0.01


def test_residues_without_a_backbone_are_left_out_and_disturb_the_rest_little(file):
    embedder = EsmIf1Embedder(file)
    structure = helices(16, 14)
    plain = embedder.embed(structure)
    traces = structure.select(~np.isin(structure.residues, (7, 8)) | (structure.names == "CB"))
    holed = embedder.embed(traces)
    kept = [i for i in range(30) if i not in (7, 8)]
    assert holed.shape == (28, 512)
    assert torch.isfinite(holed).all()
    far, near = ((holed - plain[kept]).abs().mean(dim=1)[part].mean() for part in (slice(20, None), slice(5, 9)))
    assert 0 < far < near
    with pytest.raises(FormatError, match="N, CA and C"):
        embedder.embed(helices(12))


def test_messages_in_parts_are_the_messages(file, monkeypatch):
    structure = helices(14, 12)
    plain = EsmIf1Embedder(file).embed(structure)
    monkeypatch.setattr(esm_if1, "_AT_ONCE", 37)
    torch.testing.assert_close(EsmIf1Embedder(file).embed(structure), plain, atol=1e-5, rtol=1e-5)


def test_chains_are_embedded_each_by_itself(file):
    embedder = embedder_named("esm_if1", weights=file)
    assert (embedder.name, embedder.dim) == ("esm_if1", 512)
    one, other = helices(24), helices(13, 13, chains="B", at=(0, 60.0, 0))
    vectors, mask = embed_chains(joined(one, other), embedder)
    assert mask.sum(dim=1).tolist() == [24, 26]
    torch.testing.assert_close(vectors[0, :24], embedder.embed(one), atol=1e-4, rtol=1e-3)


def test_a_download_of_fair_esm_is_found(file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(MissingFileError, match=r"curl -LO https://.*esm_if1_gvp4_t16_142M_UR50\.pt"):
        embedder_named("esm_if1")
    kept = tmp_path / "hub" / "checkpoints" / "esm_if1_gvp4_t16_142M_UR50.pt"
    kept.parent.mkdir(parents=True)
    file.rename(kept)
    assert embedder_named("esm_if1").dim == 512


def test_weights_for_an_embedder_that_takes_none_are_refused(file):
    with pytest.raises(ConfigError, match="esm_if1 alone"):
        embedder_named("geometry", weights=file)


class _Runs:
    """Runs when it is unpickled, if anything lets it."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_a_file_with_code_is_refused_and_nothing_of_it_runs(tmp_path):
    torch.save(checkpoint(extra=_Runs(tmp_path / "witness")), tmp_path / "evil.pt")
    with pytest.raises(FormatError, match="never run"):
        load_esm_if1(tmp_path / "evil.pt")
    assert not (tmp_path / "witness").exists()


def _without(model, name):
    return {key: value for key, value in model.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: {"model": c["model"]}, "without 'args'"),
        (lambda c: c["model"], "without 'args'"),
        (lambda c: [1.0], "without 'args'"),
        (lambda c: {**c, "args": Namespace(arch="roberta_large")}, "weights of 'roberta_large'"),
        (lambda c: {**c, "args": Namespace(arch=SETTINGS.arch)}, "encoder_embed_dim"),
        (lambda c: {**c, "model": _without(c["model"], "encoder.layer_norm.bias")}, "layer_norm.bias"),
        (lambda c: {**c, "model": _without(c["model"], "encoder.embed_tokens.weight")}, "embed_tokens"),
        (lambda c: {**c, "model": {**c["model"], "encoder.more": torch.ones(2)}}, "more"),
        (lambda c: {**c, "model": {**c["model"], "encoder.layers.0.fc1.bias": torch.ones(3)}}, "fc1.bias"),
        (lambda c: {**c, "model": {**c["model"], "encoder.layers.0.fc1.bias": torch.full((48,), torch.nan)}}, "NaN"),
    ],
)
def test_other_weights_are_refused(tmp_path, change, said):
    torch.save(change(checkpoint()), tmp_path / "other.pt")
    with pytest.raises(FormatError, match=said) as error:
        load_esm_if1(tmp_path / "other.pt")
    assert "esm_if1_gvp4_t16_142M_UR50.pt" in error.value.hint


def test_a_file_that_is_cut_short_or_missing_is_said(file, tmp_path):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(FormatError, match="cut short"):
        load_esm_if1(file)
    file.write_bytes(b"")
    with pytest.raises(FormatError, match="cut short"):
        load_esm_if1(file)
    with pytest.raises(MissingFileError, match="weights of ESM-IF1"):
        load_esm_if1(tmp_path / "none.pt")
