"""A vocabulary cut down to what a corpus uses, with the proof that the model stays the same.

What is equal afterwards, and what is not:

- Every weight that stays is the old one bit for bit, and so is every logit of a kept token for the same
  tokens in, but for the order in which float32 sums are taken.
- A label's score is as before: it is taken over the labels' tokens alone, which all stay.
- A next-token probability is not as before: a softmax over fewer tokens shares out what the removed ones
  had, p' = p / (1 - removed). Hence logits are compared, and log-probabilities renormalised over the kept
  tokens; what the removed ones had is reported. A greedy rationale changes only where a removed token was
  the likeliest.
- A text that was counted is read as the same tokens. A text that was not counted may be split into more,
  smaller pieces, which spell the same text; what that does to its label is measured and reported.
"""

from convert.vocabulary.trim import TrimResult, trim_vocabulary

__all__ = ["TrimResult", "trim_vocabulary"]
