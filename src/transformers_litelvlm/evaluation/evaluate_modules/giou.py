"""What `evaluate.load` finds in this file."""

from transformers_litelvlm.evaluation.modules import Giou as Giou
