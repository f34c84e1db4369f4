"""A signup system of five services: three answer HTTP, two handle events. See README.md."""
