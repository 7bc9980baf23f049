"""A program that starts after the fork."""

import draw

for name, value in draw.draws():
    print("fresh." + name, value)
