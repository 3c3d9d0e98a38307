"""Which visual tokens are kept. Pure tensors: this package imports torch and the standard library alone."""

from transformers_litelvlm.pruning.anchorprune import AnchorPruner
from transformers_litelvlm.pruning.base import Pruner, Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.cdpruner import CDPruner
from transformers_litelvlm.pruning.cls_attention import ClassAttentionPruner
from transformers_litelvlm.pruning.divprune import DivPrunePruner
from transformers_litelvlm.pruning.fastv import FastVPruner
from transformers_litelvlm.pruning.importing import import_methods
from transformers_litelvlm.pruning.ivc_prune import IVCPrunePruner
from transformers_litelvlm.pruning.layers import LayerEvidence, LayerPruner
from transformers_litelvlm.pruning.litelvlm import LiteLVLMPruner
from transformers_litelvlm.pruning.none import NoPruner
from transformers_litelvlm.pruning.prumerge_plus import PruMergePlusPruner
from transformers_litelvlm.pruning.random import RandomPruner
from transformers_litelvlm.pruning.registry import build_pruner, get_pruner, list_pruners, register_pruner
from transformers_litelvlm.pruning.selection import resolve_budget
from transformers_litelvlm.pruning.sparsevlm import SparseVLMPruner
from transformers_litelvlm.pruning.tome import ToMePruner
from transformers_litelvlm.pruning.trim import TRIMPruner
from transformers_litelvlm.pruning.uniform import UniformPruner
from transformers_litelvlm.pruning.visionzip import VisionZipPruner
from transformers_litelvlm.pruning.vispruner import VisPruner


__all__ = [
    "AnchorPruner",
    "CDPruner",
    "ClassAttentionPruner",
    "DivPrunePruner",
    "FastVPruner",
    "IVCPrunePruner",
    "LayerEvidence",
    "LayerPruner",
    "LiteLVLMPruner",
    "NoPruner",
    "PruMergePlusPruner",
    "Pruner",
    "RandomPruner",
    "Selection",
    "SparseVLMPruner",
    "TRIMPruner",
    "ToMePruner",
    "TokenPruner",
    "UniformPruner",
    "VisPruner",
    "VisionZipPruner",
    "VisualEvidence",
    "build_pruner",
    "get_pruner",
    "import_methods",
    "list_pruners",
    "register_pruner",
    "resolve_budget",
]
