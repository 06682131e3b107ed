"""`watnn check`: the fused backends of a machine against the reference, and where the answer is kept."""
