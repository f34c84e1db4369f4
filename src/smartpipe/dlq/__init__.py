"""Operations on dead-letter queues: list, peek, redrive, purge."""
