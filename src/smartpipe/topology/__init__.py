"""The AWS resources that services need: derived from code, compared with AWS, exported."""
