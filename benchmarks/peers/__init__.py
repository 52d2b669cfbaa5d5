"""What others do, measured beside us. Nothing is imported here: the peers' own venv reads it too.

| module | what |
| --- | --- |
| field | who runs, with how much, and what each does not promise |
| streams | Kafka Streams: Java, compiled here |
| guests | those written in Python, run by a venv of their own |
| environment | that venv |
"""
