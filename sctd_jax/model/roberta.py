"""RoBERTa (Liu et al., 2019), and with other vocabularies XLM-R and CamemBERT: BERT's network.

What differs is outside the network. A checkpoint's position table begins with two rows that no token reads, for its
first position is the id of <pad> plus 1: `hf/` leaves them out and puts them back. There is one kind of segment
(`type_vocab_size`), LayerNorm has epsilon 1e-5 (`layer_norm_eps`), and its head has other names.
"""

from sctd_jax.model import bert

FAMILY = bert.FAMILY
