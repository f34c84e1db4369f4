"""Bodies that do not travel as they are: compressed ones, and large ones that wait in S3 (the claim check pattern)."""
