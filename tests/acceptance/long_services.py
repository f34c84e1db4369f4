"""A service with long handlers, for workers in processes of their own."""

from __future__ import annotations

import asyncio

from smartpipe import Event, Service, Topic


class FilmUploaded(Event, topic=Topic("films"), type="film.uploaded", version="1.0"):
    name: str
    seconds: float = 0.0


service = Service("films", publishes=[FilmUploaded])


@service.subscribe(FilmUploaded)
async def encode(event: FilmUploaded) -> None:
    await asyncio.sleep(event.seconds)
