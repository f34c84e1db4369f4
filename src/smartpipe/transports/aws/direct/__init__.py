"""The calls that are made all the time, without botocore: a small HTTP/1.1 client, SigV4, and two protocols of AWS."""
