"""One folder an op, one file a backend. Each op folder's README has the maths."""
