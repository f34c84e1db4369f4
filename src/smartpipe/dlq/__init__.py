"""Operations on dead-letter queues: list, show, redrive, purge."""
