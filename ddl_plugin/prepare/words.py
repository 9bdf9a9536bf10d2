"""Numbers with their nouns."""

from __future__ import annotations


def counted(number: int, one: str, several: str) -> str:
    """'1 image', '2 images'."""
    return f"{number} {one if number == 1 else several}"


def images_each(least: int, most: int) -> str:
    """'1 image each', '2 to 3 images each'."""
    return (f"{least} to {most} images" if least != most else counted(most, "image", "images")) + " each"


def images_of_identities(images: int, identities: int) -> str:
    """'1 image of 1 identity'."""
    return f"{counted(images, 'image', 'images')} of {counted(identities, 'identity', 'identities')}"
